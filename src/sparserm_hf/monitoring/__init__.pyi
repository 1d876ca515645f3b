from .drift import ALARM as ALARM
from .drift import check_features as check_features
from .drift import load_reference as load_reference
from .drift import read_texts as read_texts
