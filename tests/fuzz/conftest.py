"""The fuzzers need atheris, which is not among the dependencies: pytest leaves them alone, its doctests too."""

collect_ignore_glob = ["fuzz_*.py"]
