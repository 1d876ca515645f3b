from .activations import TokenActivations as TokenActivations
from .collect import Pooling as Pooling
from .collect import collect_representations as collect_representations
from .shards import Representations as Representations
from .shards import Shard as Shard
