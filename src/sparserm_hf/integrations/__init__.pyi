from .drift_callback import DriftCallback as DriftCallback
from .ray_data import score_parquet as score_parquet
from .reward_function import SparseRMReward as SparseRMReward
from .stock_export import export_stock as export_stock
