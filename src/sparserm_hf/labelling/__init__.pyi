from .labelling import label as label
from .labelling_settings import LabellingConfig as LabellingConfig
