"""python -m moejax VERB ..."""

import sys

from moejax import cli

if __name__ == "__main__":
  sys.exit(cli.main(sys.argv[1:]))
