"""Training without the command line's libraries: ``python -m keyglue.training RECIPE --data ... --out ...``."""

import argparse
from pathlib import Path

import torch
from keyglue.training.recipes import RECIPES
from keyglue.training.photos import load_photos
from keyglue.training.superpoint import SuperPointTask
from keyglue.training.loop import Trainer

parser = argparse.ArgumentParser()
parser.add_argument("recipe", choices=RECIPES)
parser.add_argument("--data", nargs="+")
parser.add_argument("--out", type=Path)
parser.add_argument("--minutes", type=float)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()
recipe = RECIPES[args.recipe]()
photos, held = load_photos(args.data).to(args.device).split()
print(len(photos), len(held))
task = SuperPointTask(recipe.task, photos, held, seed=recipe.loop.seed)
tr = Trainer(task, recipe.loop, args.out, minutes=args.minutes, recipe=recipe.described(), show=lambda s: print(s, flush=True))
print("resumed", tr.resume())
print(tr.run())
