from .aligner import IterativeAligner as IterativeAligner
from .alignment_report import print_outcome as print_outcome
from .alignment_report import write_report as write_report
from .settings import AlignmentConfig as AlignmentConfig
from .truthfulqa import load_truthfulqa as load_truthfulqa
