from .drift import ALARM as ALARM
from .drift import Drift as Drift
from .drift import load_reference as load_reference
from .drift import measure_drift as measure_drift
from .drift import monitor as monitor
from .scored_responses import ScoredResponses as ScoredResponses
from .scored_responses import score_for_drift as score_for_drift
