"""`python benchmarks/tokenize.py …` runs `bulk_tokenize.py`, which could not itself have this name.

Python puts a script's folder in front of its path, so for every script here `import tokenize`, as the standard library's own
`linecache` does, finds this file. Whoever imports it is given the standard library's module.
"""

import sys

if __name__ == "__main__":
    here = sys.path.pop(0)
    import runpy

    runpy.run_path(f"{here}/bulk_tokenize.py", run_name="__main__")
else:
    here = __file__.rpartition("/")[0]
    del sys.modules["tokenize"]
    place = next(number for number, path in enumerate(sys.path) if path.rstrip("/") == here)
    sys.path.pop(place)
    import tokenize  # noqa: F401 - what is in sys.modules when this file is done is what the importer gets

    sys.path.insert(place, here)
