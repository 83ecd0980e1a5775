"""Do the trainings that a plan asks for, and tell what they say together.

    python tools/experiments.py configs/experiments/heads.yaml --tell
    python tools/experiments.py configs/experiments/heads.yaml

A plan names configurations, data and seeds. A run whose result file is there is not done again; the
others are trained and evaluated by tools/train_net.py, and leave a file each. Ends with tables and
a plot of all files. --tell only says how many runs are left and how long they take.

All of them compute with one thread, so that a figure is that of a processor whatever its cores, and
two plans share two cores; OMP_NUM_THREADS in the environment says otherwise.
"""

import os
import sys

import torch

from ctmasknet.errors import command_line
from ctmasknet.experiments.run import run_plan
from ctmasknet.overrides import ToolParser


@command_line(go_on="the same command goes on; finished runs have their files")
def main(argv=None):
    parser = ToolParser(description=__doc__)
    add = parser.add_argument
    add("plan", metavar="PLAN.yaml", help="such as configs/experiments/heads.yaml")
    add("--results", default="docs/results/experiments", help="folder of result files")
    add("--work", default="output/experiments", help="folder of what runs leave meanwhile")
    add("--evidence", metavar="FILE", help="write the tables between a Markdown file's marks too")
    add("--tell", action="store_true", help="say what the plan will take, run nothing")
    add("--tables", action="store_true", help="run nothing; tables of the files that are there")
    args = parser.parse_args(argv)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that this one starts
        torch.set_num_threads(1)
    run_plan(
        args.plan,
        args.results,
        args.work,
        tell_only=args.tell,
        tables_only=args.tables,
        evidence=args.evidence,
    )


if __name__ == "__main__":
    sys.exit(main())
