"""Train the enhanced Transformer: the same as `transformer train`, which takes the same arguments."""

import sys

from transformer.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", *(sys.argv[1:] or ["--config", "configs/enhanced_transformer.yaml"])]))
