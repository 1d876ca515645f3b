"""Score Parquet files with vLLM's engines on a Ray cluster, by Ray Data's own processor.

    python examples/score_with_vllm.py REWARD_MODEL INPUT OUTPUT_DIR [ENGINES]

INPUT is a Parquet file or a folder of them, whose rows have `messages` that end with the assistant's. OUTPUT_DIR gets
the rows with their `reward`. Each engine takes a GPU, or a CPU if there is no GPU. An interrupted run must start from
the beginning; `sparserm score --engine ray` continues an interrupted run.
"""

import sys

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from sparserm_hf.modeling.predict_sparserm import ConversationEncoder
from transformers import AutoTokenizer

from sparserm_hf import SparseRMConfig


def main(reward_model: str, source: str, output_dir: str, engines: str = "1") -> None:
    config = SparseRMConfig.from_pretrained(reward_model)
    # Unlike a chat template alone, the encoder keeps the content of a message from creating special tokens.
    encoder = ConversationEncoder(AutoTokenizer.from_pretrained(reward_model), config, config.vocab_size)
    ray.init()
    rows = ray.data.read_parquet(source)
    columns = rows.columns()
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=reward_model,
            task_type="classify",
            concurrency=int(engines),
            placement_group_config=None if ray.cluster_resources().get("GPU") else {"bundles": [{"CPU": 1}]},
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,
        ),
        preprocess=lambda row: row | {"tokenized_prompt": list(encoder(row, "A conversation").ids)},
        postprocess=lambda row: {name: row[name] for name in columns} | {"reward": float(row["embeddings"][0])},
    )
    processor(rows).write_parquet(output_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
