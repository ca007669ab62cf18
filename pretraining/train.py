"""Train the embedded backbone: `python -m pretraining.train --data DIR --teacher FILE --out FILE`.

Joint loss: a linear classification head for every group of classes, and distillation of the teachers' maps, one
teacher a batch, at two resolutions (same resolution: fine detail, half of it from `--sharp` pictures where there are
any; teacher at twice the student's: what small pictures show). `--start` continues from the weights of an earlier run,
also of a narrower network. A resumed run may have fewer `--steps` than it began with: the learning rate follows.

On a GPU all pictures lie in its memory and views are made there; `--minutes` sets the steps by the speed of the first
ones: `--start anomaly_cli/detector/backbones/weights/embedded.safetensors --batch-size 256 --minutes 10`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anomaly_cli.detector.backbones.compact_resnet import WIDTHS, CompactResNet
from pretraining.pictures import SHARP_SIZE, Pictures, load_pictures
from pretraining.teacher import RecordedTeacher
from pretraining.views import random_views
from pretraining.widen import widened

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels, as every torchvision backbone expects
STD = (0.229, 0.224, 0.225)
LOG_EVERY = 100  # steps
SAVE_EVERY = 500  # steps
BATCHES_FOR_STATISTICS = 20
TIMED_STEPS = 100  # after which the steps of `--minutes` are set; on a GPU the first of them are slow


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that shapes the weights, kept in the log and in the weights' header."""

    steps: int = 12_000
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 400
    same_size: int = 96  # pixels; student and teacher see the same view
    sharp_size: int = 128  # pixels; the same, of sharp pictures
    small_size: int = 64  # pixels; the student's view, the teacher sees twice the side
    same_share: float = 0.5  # of the batches
    sharp_share: float = 0.5  # of the same-resolution batches, where there are sharp pictures
    label_weight: float = 0.15
    label_smoothing: float = 0.1
    balance: float = 0.6  # a group of n pictures is drawn in proportion to n to this power
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Share of the learning rate at a step: linear warm-up, then a cosine down to 1 %."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Standardiser(nn.Module):
    """Per-channel location and spread of a teacher map, so that every channel counts alike."""

    mean: Tensor
    std: Tensor

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        values = torch.cat([m.transpose(0, 1).flatten(1) for m in maps], dim=1)  # (D, cells)
        self.register_buffer("mean", values.mean(1).view(1, -1, 1, 1))
        self.register_buffer("std", values.std(1).clamp(min=1e-4).view(1, -1, 1, 1))

    def forward(self, target: Tensor) -> Tensor:
        """Standardise (N, D, h, w) over its channels."""
        return (target - self.mean) / self.std


class TeacherHead(nn.Module):
    """Projections of the student's maps to those of one teacher, and of its pooled last map to the teacher's."""

    def __init__(self, targets: dict[str, list[Standardiser]], embedding_width: int) -> None:
        super().__init__()
        self.standardisers = nn.ModuleDict({mode: nn.ModuleList(each) for mode, each in targets.items()})
        self.projections = nn.ModuleDict(
            {
                mode: nn.ModuleList(nn.Conv2d(w, s.mean.shape[1], 1) for w, s in zip(WIDTHS, each, strict=True))
                for mode, each in targets.items()
            }
        )
        self.embedding = nn.Linear(WIDTHS[-1], embedding_width)

    def losses(self, maps: list[Tensor], target: list[Tensor], mode: str) -> dict[str, Tensor]:
        """Compare the student's maps with the teacher's."""
        out: dict[str, Tensor] = {}
        projections = cast(nn.ModuleList, self.projections[mode])
        standardisers = cast(nn.ModuleList, self.standardisers[mode])
        for i, (project, student_map) in enumerate(zip(projections, maps, strict=True)):
            goal = standardisers[i](target[i])
            answer = F.interpolate(project(student_map), size=goal.shape[-2:], mode="bilinear", align_corners=False)
            out[f"distil_{i}"] = F.smooth_l1_loss(answer.float(), goal)
        pooled = self.embedding(maps[-1].mean(dim=(2, 3))).float()
        out["embedding"] = F.smooth_l1_loss(pooled, target[-1].mean(dim=(2, 3)).sqrt())
        return out


class Student(nn.Module):
    """Backbone with its training heads: one a teacher, and one classifier a group."""

    def __init__(self, heads: list[TeacherHead], class_counts: list[int]) -> None:
        super().__init__()
        self.backbone = CompactResNet()
        self.heads = nn.ModuleList(heads)
        self.classifiers = nn.ModuleList(nn.Linear(WIDTHS[-1], count) for count in class_counts)

    def losses(
        self, view: Tensor, target: list[Tensor], teacher: int, mode: str, groups: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Compare one batch with the maps of one teacher and with the labels."""
        maps = self.backbone(view)
        out = cast(TeacherHead, self.heads[teacher]).losses(maps, target, mode)
        out["label"] = self._label_loss(maps, groups, labels)
        return out

    def _label_loss(self, maps: list[Tensor], groups: Tensor, labels: Tensor) -> Tensor:
        pooled = maps[-1].mean(dim=(2, 3)).float()
        total = pooled.new_zeros(())
        for group, classify in enumerate(self.classifiers):
            chosen = groups == group
            if chosen.any():
                total = total + F.cross_entropy(
                    classify(pooled[chosen]),
                    labels[chosen],
                    label_smoothing=Recipe.label_smoothing,
                    reduction="sum",
                )
        return total / len(pooled)


class Batches:
    """Endless seeded batches: views for student and teacher, group and class of each picture."""

    def __init__(self, pictures: Pictures, sharp: Pictures | None, recipe: Recipe, device: torch.device) -> None:
        self.pictures = pictures
        self.sharp = sharp
        self.recipe = recipe
        self.device = device
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.noise_generator = self.generator
        self.resident: dict[int, Tensor] = {}  # all pixels on the GPU, by the identity of their pictures
        if device.type == "cuda":  # reading and sending each batch takes longer than a step
            self.noise_generator = torch.Generator(device).manual_seed(recipe.seed)
            self.resident = {id(each): torch.tensor(each.pixels, device=device) for each in (pictures, sharp) if each}
        self.groups = torch.from_numpy(pictures.groups)
        self.labels = torch.from_numpy(pictures.labels)
        weights = torch.bincount(self.groups).double().pow(recipe.balance - 1)[self.groups]
        self.cumulative = weights.cumsum(0) / weights.sum()

    def draw(self, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return student view, teacher view (both in [0, 1]), groups and labels; sharp pictures have group -1."""
        recipe = self.recipe
        draws = torch.rand(recipe.batch_size, generator=self.generator, dtype=torch.float64)
        if mode == "same" and self.sharp is not None and self._draw(recipe.sharp_share):
            chosen = (draws * len(self.sharp.pixels)).long().sort().values
            view = self._views(self.sharp, chosen, recipe.sharp_size)
            nothing = torch.full_like(chosen, -1).to(self.device)
            return view, view, nothing, nothing
        chosen = torch.searchsorted(self.cumulative, draws).sort().values
        view = self._views(self.pictures, chosen, recipe.same_size if mode == "same" else 2 * recipe.small_size)
        student_view = view if mode == "same" else F.avg_pool2d(view, 2)
        return student_view, view, self.groups[chosen].to(self.device), self.labels[chosen].to(self.device)

    def _views(self, pictures: Pictures, chosen: Tensor, size: int) -> Tensor:
        if self.resident:
            pixels = self.resident[id(pictures)][chosen.to(self.device)]
        else:
            pixels = torch.from_numpy(pictures.pixels[chosen.numpy()])
        images = pixels.permute(0, 3, 1, 2).float() / 255  # (N, 3, side, side)
        views = random_views(images, size, self.generator, self.noise_generator)
        return views.contiguous(memory_format=torch.channels_last)

    def _draw(self, share: float) -> bool:
        return torch.rand((), generator=self.generator).item() < share

    def draw_teacher(self, count: int) -> int:
        """Choose the teacher of the next batch."""
        return int(torch.randint(count, (), generator=self.generator))

    def draw_mode(self) -> str:
        """Choose the teacher's resolution in the next batch: the student's, or twice that."""
        return "same" if self._draw(self.recipe.same_share) else "twice"


def _teacher_targets(maps: list[Tensor], mode: str) -> list[Tensor]:
    """Pair each student stage with a teacher map: at equal size by stride, at double size one stage deeper."""
    return maps if mode == "same" else maps[1:]


def _standardisers(batches: Batches, teacher: nn.Module) -> dict[str, list[Standardiser]]:
    out = {}
    for mode in ("same", "twice"):
        seen = [_teacher_targets(teacher(batches.draw(mode)[1]), mode) for _ in range(BATCHES_FOR_STATISTICS)]
        stages = [list(stage) for stage in zip(*seen, strict=True)][: len(WIDTHS)]
        out[mode] = [Standardiser([m.clone() for m in stage]) for stage in stages]
    return out


def _compare_next(
    student: Student, teachers: list[RecordedTeacher], batches: Batches
) -> tuple[dict[str, str | int], dict[str, Tensor]]:
    """Draw the next batch and compare: what kind of batch it is, and its losses."""
    device = batches.device
    mode = batches.draw_mode()
    view, teacher_view, groups, labels = batches.draw(mode)
    number = batches.draw_teacher(len(teachers))
    halves = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    with torch.autocast(device.type, torch.bfloat16, enabled=halves):
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
        view = (view - mean) / std
        target = [t.float().clone() for t in _teacher_targets(teachers[number](teacher_view), mode)]
        losses = student.losses(view, target, number, mode, groups, labels)
    return {"mode": mode, "teacher": number}, losses


def _load_state(path: Path, parts: dict[str, Any], batches: Batches) -> int:
    """Restore an interrupted run; the number of its last step, 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    batches.generator.set_state(state["generator"])
    if "noise_generator" in state:
        batches.noise_generator.set_state(state["noise_generator"])
    return int(state["step"])


def _save_state(path: Path, parts: dict[str, Any], batches: Batches, step: int) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"generator": batches.generator.get_state(), "step": step}
    if batches.noise_generator is not batches.generator:
        state["noise_generator"] = batches.noise_generator.get_state()
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def _append(log: Path, row: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")


def steps_within(left_s: float, timed_s: float) -> int:
    """Count the steps that fit into the seconds left, where `TIMED_STEPS` took so many."""
    return max(0, int(left_s / timed_s * TIMED_STEPS))


def export(student: Student, recipe: Recipe, out: Path) -> None:
    """Write the backbone alone, half precision, with its recipe in the header."""
    state = {k: v.half().contiguous() for k, v in student.backbone.state_dict().items() if v.is_floating_point()}
    partial = out.with_name(out.name + ".partial")
    save_file(state, partial, {"format": "1", "recipe": json.dumps(asdict(recipe))})
    partial.replace(out)


def _new_student(teachers: list[RecordedTeacher], batches: Batches, classes: list[int], start: Path | None) -> Student:
    """Build the student with a head for each teacher and each number of classes, on the CPU."""
    heads = [TeacherHead(_standardisers(batches, teacher), teacher.width) for teacher in teachers]
    student = Student(heads, classes)
    if start is not None:
        student.backbone.load_state_dict(widened(load_file(start), batches.recipe.seed), strict=False)
    return student.to(memory_format=torch.channels_last)


def _descend(
    student: Student, losses: dict[str, Tensor], label_weight: float, optimiser: torch.optim.Optimizer
) -> Tensor:
    """Make one step down the gradient of the weighted sum of the losses, and return that sum."""
    total = cast(Tensor, sum(label_weight * loss if name == "label" else loss for name, loss in losses.items()))
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 5.0)
    optimiser.step()
    return total


def train(
    pictures: Pictures,
    teachers: list[RecordedTeacher],
    recipe: Recipe,
    out: Path,
    device: torch.device,
    start: Path | None = None,
    sharp: Pictures | None = None,
    minutes: float | None = None,
) -> Student:
    """Run or resume the recipe; a checkpoint beside `out` survives a kill at any moment.

    Args:
        pictures: with their classes.
        teachers: on the device, in eval mode.
        recipe: of this run.
        out: safetensors file, written anew with every checkpoint.
        device: of the student.
        start: weights of an earlier run, of this or a narrower network; random ones without.
        sharp: larger pictures for the batches in which student and teacher share the resolution.
        minutes: that the run may take from here on; they replace the steps of the recipe.
    """
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    batches = Batches(pictures, sharp, recipe, device)
    student = _new_student(teachers, batches, [len(c) for c in pictures.classes], start).to(device)
    optimiser = torch.optim.AdamW(student.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: recipe.rate_at(step))
    parts: dict[str, Any] = {"student": student, "optimiser": optimiser, "schedule": schedule}
    resume = out.with_suffix(".resume")
    step = first = _load_state(resume, parts, batches)
    if minutes is not None:
        recipe = replace(recipe, steps=first + TIMED_STEPS)
    log, begun = out.with_suffix(".jsonl"), time.monotonic()
    student.train()
    while step < recipe.steps:
        step += 1
        facts, losses = _compare_next(student, teachers, batches)
        total = _descend(student, losses, recipe.label_weight, optimiser)
        schedule.step()
        if minutes is not None and step == first + TIMED_STEPS:
            total.item()  # waits for the GPU
            now = time.monotonic()
            recipe = replace(recipe, steps=step + steps_within(60 * minutes - (now - started), now - begun))
        if step % LOG_EVERY == 0:
            rate = (step - first) * recipe.batch_size / (time.monotonic() - begun)
            _append(log, {"step": step, **facts, "views_per_s": rate, **{n: loss.item() for n, loss in losses.items()}})
        if step % SAVE_EVERY == 0 or step == recipe.steps:
            _save_state(resume, parts, batches, step)
            export(student, recipe, out)
    return student


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of packed sets or class folders")
    parser.add_argument("--sharp", type=Path, nargs="+", help="the same, of larger pictures")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, help="files with recorded operations")
    parser.add_argument("--start", type=Path, help="weights to start from, instead of random ones")
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--label-weight", type=float, default=Recipe.label_weight)
    parser.add_argument("--same-share", type=float, default=Recipe.same_share, help="of the batches")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the decoded pictures (28 or 77 kB each)")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--minutes", type=float, help="to train; replaces --steps")
    parser.add_argument("--batch-size", type=int, default=Recipe.batch_size)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teachers = [RecordedTeacher(file).to(device).to(memory_format=torch.channels_last).eval() for file in args.teacher]
    chosen = ("steps", "batch_size", "seed", "learning_rate", "label_weight", "same_share")
    recipe = Recipe(**{name: getattr(args, name) for name in chosen})
    sharp = load_pictures(args.sharp, args.cache / "sharp", SHARP_SIZE) if args.sharp else None
    train(load_pictures(args.data, args.cache), teachers, recipe, args.out, device, args.start, sharp, args.minutes)


if __name__ == "__main__":
    main()
