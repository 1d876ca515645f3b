from .combining import combine as combine
from .config import RewardHeadConfig as RewardHeadConfig
from .config import SparseRMTrainingConfig as SparseRMTrainingConfig
from .represented_texts import PairIndices as PairIndices
from .represented_texts import RepresentedTexts as RepresentedTexts
from .steps import FittedRewardHead as FittedRewardHead
from .steps import fit_reward_head as fit_reward_head
from .trainer import SparseRMTrainer as SparseRMTrainer
