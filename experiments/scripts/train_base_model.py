"""Train the base Transformer: the same as `transformer train`, which takes the same arguments."""

import sys

from transformer.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", *(sys.argv[1:] or ["--config", "configs/base_transformer.yaml"])]))
