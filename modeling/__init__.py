"""The model: what travels to the Hub with every checkpoint, byte for byte."""

# First, because the package registers its classes when this is loaded, and none of the files beside this one may be
# half loaded then.
import transformers.models.auto.modeling_auto  # noqa: F401
