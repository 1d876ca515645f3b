from .facts import make_facts as make_facts
