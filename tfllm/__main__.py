"""`python -m tfllm` is the same as the `tfllm` command."""

from tfllm.cli import main

if __name__ == "__main__":
    main()
