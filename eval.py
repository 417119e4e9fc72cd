"""The graders' command: python eval.py --weights your_model.pt --data_root data --tasks all"""
import sys

from unified_onehead.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
