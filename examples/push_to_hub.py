"""Push a trained reward model to the Hub, with its tokenizer, controls and card.

    python examples/push_to_hub.py FOLDER OWNER/NAME

Log in first: `hf auth login`. A model that was trained with `--slim` has a few MB: loading it fetches the base
model by its id.
"""

import sys

from huggingface_hub import HfApi


def main(folder: str, repo_id: str) -> None:
    api = HfApi()
    repo = api.create_repo(repo_id, private=True, exist_ok=True)
    api.upload_folder(folder_path=folder, repo_id=repo.repo_id, commit_message="Add SparseRM reward model")


if __name__ == "__main__":
    main(*sys.argv[1:])
