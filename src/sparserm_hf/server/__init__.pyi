from .app import answer_errors as answer_errors
from .app import create_app as create_app
from .guards import CheckHost as CheckHost
from .guards import ReceiveBody as ReceiveBody
from .guards import RequireToken as RequireToken
from .limits import BODY_SECONDS as BODY_SECONDS
from .listening import run_app as run_app
from .serving import serve as serve
