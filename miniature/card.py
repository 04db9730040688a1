"""The miniature's card: what it is, how it was made, what it can do, in numbers measured on the saved files."""

from efface.miniature.vocabulary import OBJECTS, STYLES

TEXT = """# The miniature

A small Stable Diffusion and a small world of drawings that it knows: the base that needs no download and no GPU.

- `model/` is an ordinary diffusers folder (`StableDiffusionPipeline`, 64 x 64 px, 8 x 8 latents, weights in fp16; load
  them as fp32). Block types, and so parameter names, are Stable Diffusion's.
- `judge/` is a multi-label image classifier (`ResNetForImageClassification`): one sigmoid per concept.
- All of it is drawn and trained by `python -m efface.miniature build`; no outside data.

## The world

{world}

Each thing comes in a plain style or a named one, in nine colours, on six grounds, in three sizes. Every concept has
aliases and descriptions that never name it; captions use all three, and one caption in ten is empty.

## Sizes

{sizes}

## Quality

Recipe: {recipe}. A prompt's picture is right when the judge sees the asked concept
(threshold 0.5). Two templates of five occur in no training caption.

| measured | value | at least |
|---|---|---|
{summary}

Judge: share of fresh pictures with every object label (or every style label) right, and share of pictures of nothing
in which it sees no object.

| pictures | share |
|---|---|
{judge}

| concept | direct | alias | indirect |
|---|---|---|---|
{concepts}

Built on {machine} in {total:.0f} minutes: {stages}.
Sizes: {sizes_of_build}.

## Limits

It knows these concepts and no others; a word that no caption used means nothing to it. Numbers found on it say how
methods compare in kind, not how they rank on models of natural images.
"""


def card(quality: dict) -> str:
    """The card as Markdown; `quality` is what `measure` returns, with `build` added."""
    groups: dict[str, list[str]] = {}
    for words in OBJECTS + STYLES:
        groups.setdefault(words.group, []).append(words.name)
    recipe = quality["recipe"]
    build = quality["build"]
    return TEXT.format(
        world="\n".join(f"- {group}: {', '.join(names)}" for group, names in groups.items()),
        sizes="\n".join(f"- {part}: {count:,} parameters" for part, count in quality["parameters"].items()),
        recipe=f"{recipe['scheduler'].upper()}, {recipe['steps']} steps, guidance {recipe['guidance_scale']:g}",
        summary=_rows((k, v, quality["bars"][k]) for k, v in quality["summary"].items()),
        judge=_rows(quality["judge"].items()),
        concepts=_rows((name, *row.values()) for name, row in quality["concepts"].items()),
        sizes_of_build=", ".join(f"{name} {number}" for name, number in build["sizes"].items()),
        total=sum(build["seconds"].values()) / 60,
        stages=", ".join(f"{stage} {seconds / 60:.1f}" for stage, seconds in build["seconds"].items()),
        machine=build["machine"],
    )


def _rows(rows: object) -> str:
    return "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)  # type: ignore[attr-defined]


def _cell(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value).replace("_", " ")
