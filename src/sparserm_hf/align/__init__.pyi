from .aligner import IterativeAligner as IterativeAligner
from .alignment_report import outcome_table as outcome_table
from .alignment_report import write_alignment_report as write_alignment_report
from .arms import Outcome as Outcome
from .settings import AlignmentConfig as AlignmentConfig
from .truthfulqa import load_truthfulqa as load_truthfulqa
