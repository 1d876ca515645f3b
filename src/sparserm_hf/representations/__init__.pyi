from .activations import TokenActivations as TokenActivations
from .collect import collect_representations as collect_representations
from .representer import Pooling as Pooling
from .representer import Representer as Representer
from .shards import Representations as Representations
from .shards import Shard as Shard
