"""Push a trained reward model to the Hub: whole, or slim (under 2 MB, the base model is loaded by its id).

    python examples/push_to_hub.py FOLDER OWNER/NAME [--slim]

Log in first: `hf auth login`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from transformers import AutoTokenizer

from sparserm_hf import SparseRMForSequenceClassification


def main(folder: str, repo_id: str, slim: str = "") -> None:
    api = HfApi()
    repo = api.create_repo(repo_id, private=True, exist_ok=True)
    if not slim:
        api.upload_folder(folder_path=folder, repo_id=repo.repo_id, commit_message="Add SparseRM reward model")
        return
    model = SparseRMForSequenceClassification.from_pretrained(folder).to_slim()
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(folder).save_pretrained(temporary)
        for name in ("README.md", "controls.safetensors"):
            shutil.copy(Path(folder) / name, temporary)
        api.upload_folder(folder_path=temporary, repo_id=repo.repo_id, commit_message="Add slim SparseRM reward model")


if __name__ == "__main__":
    main(*sys.argv[1:])
