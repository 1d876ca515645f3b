from .app import create_app as create_app
from .listening import check_host as check_host
from .listening import serve as serve
