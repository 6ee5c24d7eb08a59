#!/usr/bin/env python
"""Train a classifier of PatchCamelyon's patches.

python scripts/train.py --config configs/imagenet_dropout.yaml --data.root DIR
python scripts/train.py --resume lightning_logs/imagenet_dropout/version_0
"""

from pcam.cli import Arguments, PCamCLI, front_door


@front_door
def main(args: Arguments = None) -> None:
    """Train, and say where the result is.

    Args:
        args: The command line; None takes the process's own.
    """
    cli = PCamCLI(args)
    cli.fit()
    cli.report()


if __name__ == "__main__":
    main()
