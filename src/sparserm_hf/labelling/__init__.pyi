from .labelling import LabellingConfig as LabellingConfig
from .labelling import label as label
