"""Measurements as pictures: what resets cost, and where the time of programs goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from profile import Profile


def plot_resets(points: Sequence[dict[str, float]], path: Path, live: int) -> None:
    """Draw the `counts` of each reset row to a PNG at `path`."""
    pages = [point["pages_dirtied"] for point in points]

    def us(name: str) -> list[float]:
        return [point[name] / 1e3 for point in points]

    x_us = us("x_ns")
    allowed = [2 * x + 1.5 * copy for x, copy in zip(x_us, us("copy_ns"), strict=True)]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(pages, us("reset_ns"), "o-", color="C0", label="reset")
    axes.plot(pages, us("added_ns"), "o--", color="C0", alpha=0.5, label="and what it defers")
    axes.plot(pages, us("copy_ns"), "s-", color="C1", label="memcpy of the pages it copies")
    axes.plot(pages, allowed, ":", color="C3", label="promise: 2 X + 1.5 memcpy")
    axes.plot(pages, x_us, ":", color="0.6", label="X: one bare exit")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    axes.set_xticks(pages, [f"{page:,.0f}" for page in pages])
    axes.set_xlabel("pages of 4 KiB that the request wrote")
    axes.set_ylabel("time (us)")
    axes.set_title(f"Putting a fork back, beside {live:,} live VM{'s' * (live > 1)}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_profiles(profiles: Sequence[Profile], titles: Mapping[str, str], path: Path) -> None:
    """Draw a bar for each profile to a PNG at `path`, in native run times, divided into parts."""
    height = 1.6 + 0.5 * len(profiles)
    figure, axes = plt.subplots(figsize=(10, height), layout="constrained")
    places = range(len(profiles), 0, -1)
    ends = [0.0] * len(profiles)
    colors = [*(f"C{number}" for number in range(10)), "0.75", "0.3"]
    for (part, title), color in zip(titles.items(), colors, strict=False):
        shares = [profile.parts[part] / profile.native_ns for profile in profiles]
        axes.barh(places, shares, left=ends, label=title, color=color)
        ends = [end + share for end, share in zip(ends, shares, strict=True)]
    axes.axvline(1, color="0.3", linestyle=":")
    axes.set_yticks(places, [profile.name for profile in profiles])
    axes.set_xlabel("wall time, in native run times of the same program")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
