"""The commands of `nashpo` that need no language model, one module each with ``main(argv) -> exit status``."""
