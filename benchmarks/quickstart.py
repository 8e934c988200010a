"""
Run the quickstart for several seeds, and write the results to `benchmarks/results/quickstart.json` and into the documentation pages.
Finished runs are kept, and interrupted runs resume.

python benchmarks/quickstart.py --seeds 0 1 2
"""

import argparse
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs"), help="Folder for the runs, with one subfolder per seed."
    )
    args = parser.parse_args()
    runs = [args.output_dir / f"quickstart-seed{seed}" for seed in args.seeds]
    for seed, run in zip(args.seeds, runs, strict=True):
        options = ["--output_dir", str(run), "--seed", str(seed)]
        subprocess.run([sys.executable, str(ROOT / "examples/quickstart.py"), *options], check=True)
    subprocess.run([sys.executable, str(ROOT / "docs/figures.py"), "--quickstart", *map(str, runs)], check=True)


if __name__ == "__main__":
    main()
