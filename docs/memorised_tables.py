"""Tables of docs/memorised.md: gathered from run folders, kept in docs/data, written into the page.

python docs/memorised_tables.py gather runs/digits-lenet5 runs/cifar10-resnet8 ...
python docs/memorised_tables.py write

A run folder is named DATA-NETWORK and holds ``experiment=memorised``. What stands in the page between the comments
``table: NAME`` and ``end`` is made from docs/data alone; a test compares it.
"""

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from gmmcnn.experiments.memorised import SCORES
from gmmcnn.experiments.plants import CONTROL

HERE = Path(__file__).parent
PAGE = HERE / "memorised.md"
DATA = HERE / "data"
DATA_SETS = {"digits": "digits", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
NETWORKS = {
    "lenet5": "LeNet-5",
    "simple_cnn": "simple CNN",
    "alexnet": "AlexNet",
    "resnet8": "ResNet-8",
    "resnet20": "ResNet-20",
}
RANK = "memorisation rank"
RULE = "paper's rule"
MASKED_SHARE = 0.1


def gather(folders: Iterable[Path]) -> None:
    """Keep what the tables are made from: one row for each cell, seed, score and kind, and for each masking."""
    found: dict[str, list[pd.DataFrame]] = {"table": [], "summary": [], "profile": [], "masking": []}
    for folder in folders:
        (experiment,) = folder.glob("experiments/memorised-*")
        data, _, network = folder.name.partition("-")
        for name, tables in found.items():
            table = pd.read_csv(experiment / f"{name}.csv")
            table.insert(0, "data", data)
            table.insert(1, "network", network)
            tables.append(table)
    masking = pd.concat(found["masking"])
    keys = ["data", "network", "seed", "order", "share"]
    by_seed = masking.groupby(keys, sort=False)[["fallen", "others_changed"]].agg(["mean", "count"])
    by_seed.columns = [f"{column}_{what}" for column, what in by_seed.columns]
    kept = by_seed.drop(columns="others_changed_count").rename(columns={"fallen_count": "samples"}).reset_index()
    DATA.mkdir(exist_ok=True)
    pd.concat(found["table"]).to_parquet(DATA / "memorised-auc.parquet", index=False)
    pd.concat(found["summary"]).to_parquet(DATA / "memorised-summary.parquet", index=False)
    pd.concat(found["profile"]).to_parquet(DATA / "memorised-layers.parquet", index=False)
    kept.to_parquet(DATA / "memorised-masking.parquet", index=False)


def tables() -> dict[str, str]:
    """Every table of the page by its name, in Markdown."""
    aucs = pd.read_parquet(DATA / "memorised-auc.parquet")
    summary = pd.read_parquet(DATA / "memorised-summary.parquet")
    found = {name: "\n".join(_scores(aucs, summary, name)) for name in DATA_SETS}
    found["cells"] = "\n".join(_cells(aucs))
    found["kinds"] = "\n".join(_kinds(aucs))
    found["layers"] = "\n".join(_layers(pd.read_parquet(DATA / "memorised-layers.parquet")))
    found["masking"] = "\n".join(_masking(pd.read_parquet(DATA / "memorised-masking.parquet")))
    return found


def of_seeds(aucs: pd.DataFrame) -> pd.Series:
    """AUC for memorised samples, mean over kinds, of each data set, network, score and seed."""
    aucs = aucs[aucs["kind"] != CONTROL]
    return aucs.groupby(["data", "network", "score", "seed"])["auc_memorised"].mean()


def written(text: str) -> str:
    """The page with its tables made anew."""
    return replaced(text, tables())


def replaced(text: str, found: dict[str, str]) -> str:
    """A page with what stands between the comments ``table: NAME`` and ``end`` replaced."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{found[match[2]]}\n<!-- end -->"

    return re.sub(r"(<!-- table: (\S+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def _scores(aucs: pd.DataFrame, summary: pd.DataFrame, data: str) -> Iterator[str]:
    """Every score in the networks of one data set: mean over seeds, and the lowest and highest seed."""
    by_seed = of_seeds(aucs)[data]
    networks = [name for name in NETWORKS if name in by_seed.index.unique("network")]
    seeds = by_seed.groupby(["network", "score"]).agg(["mean", "min", "max"])
    means = seeds["mean"].unstack("network")[networks]
    order = means.mean(axis=1).sort_values(ascending=False).index
    yield f"| {DATA_SETS[data]} | needs | {' | '.join(NETWORKS[name] for name in networks)} |"
    yield "|---" * (2 + len(networks)) + "|"
    for score in order:
        cells = []
        for network in networks:
            value = seeds.loc[network, score]
            text = f"{value['mean']:.3f}"
            best = text == f"{means[network].max():.3f}"
            cells.append(f"{f'**{text}**' if best else text} ({value['min']:.2f} … {value['max']:.2f})")
        yield f"| {score} | {SCORES[score]} | {' | '.join(cells)} |"
    precision = summary[summary["data"] == data].set_index(["score", "network"])["precision"]
    for score in (RANK, "final loss"):
        yield f"| *precision: {score}* | | {' | '.join(f'{precision[score, name]:.2f}' for name in networks)} |"
    counted = _counted(aucs[aucs["data"] == data])
    numbers = (f"{memorised} of {planted}" for memorised, planted in (counted.loc[data, name] for name in networks))
    yield f"| *memorised, of planted* | | {' | '.join(numbers)} |"


def _counted(aucs: pd.DataFrame) -> pd.DataFrame:
    one = aucs[(aucs["score"] == RANK) & (aucs["kind"] != CONTROL)]
    return one.groupby(["data", "network"])[["memorised", "planted"]].sum()


def _cells(aucs: pd.DataFrame) -> Iterator[str]:
    """The rank beside the best rival that needs the final network alone, in every cell."""
    means = of_seeds(aucs).groupby(["data", "network", "score"]).mean()
    there = means.index.unique("score")
    rivals = [score for score, needs in SCORES.items() if needs == "final network" and score in there]
    columns = ("data, network", RANK, "best rival of the final network", "difference", "final loss", RULE)
    yield f"| {' | '.join(columns)} |"
    yield "|---|---|---|---|---|---|"
    for data, network in _in_order(aucs):
        cell = means[data, network]
        best = cell[rivals].idxmax()
        difference = cell[RANK] - cell[best]
        yield (
            f"| {DATA_SETS[data]}, {NETWORKS[network]} | {cell[RANK]:.3f} | {cell[best]:.3f} ({best}) | "
            f"{_signed(difference)} | {cell['final loss']:.3f} | {cell[RULE]:.3f} |"
        )
    for data, title in DATA_SETS.items():
        yield f"| *{title}, mean of its networks* | {means.xs(RANK, level='score')[data].mean():.3f} | | | | |"


def _signed(difference: float) -> str:
    """With a sign, but for what rounds to nothing."""
    return f"{difference:+.3f}" if abs(difference) >= 0.0005 else "0.000"


def _kinds(aucs: pd.DataFrame) -> Iterator[str]:
    """The rank's AUC for each kind, mean over seeds."""
    cells = list(_in_order(aucs))
    ranks = aucs[aucs["score"] == RANK].copy()
    control = ranks["kind"] == CONTROL
    ranks.loc[control, "auc_memorised"] = ranks.loc[control, "auc"]  # nothing is memorised there
    means = ranks.groupby(["data", "network", "kind"], sort=False)["auc_memorised"].mean()
    yield from _head("memorisation rank", cells)
    for kind in ranks["kind"].unique():
        values = (means[cell[0], cell[1], kind] for cell in cells)
        name = f"*{kind} (control)*" if kind == CONTROL else kind
        yield f"| {name} | {' | '.join('–' if pd.isna(value) else f'{value:.2f}' for value in values)} |"


def _layers(profile: pd.DataFrame) -> Iterator[str]:
    """AUC of one layer's own surprise for wrong labels, of the first, the middle and the last layer."""
    wrong = profile[profile["kind"].isin(["wrong label", "wrong label, next class"])]
    means = (
        wrong.groupby(["data", "network", "layer"], sort=False)["auc"]
        .mean()
        .sort_index(level=[0, 1], sort_remaining=False)
    )
    yield "| wrong labels, by the surprise of one layer | first | middle | last | layers |"
    yield "|---|---|---|---|---|"
    for data, network in _in_order(profile):
        layers = means.xs((data, network))
        chosen = (layers.iloc[place] for place in (0, len(layers) // 2, -1))
        values = " | ".join(f"{value:.2f}" for value in chosen)
        yield f"| {DATA_SETS[data]}, {NETWORKS[network]} | {values} | {len(layers)} |"


def _masking(masking: pd.DataFrame) -> Iterator[str]:
    """Labels that fell, and other predictions that changed, in percent: mean over samples of all seeds."""
    cells = list(_in_order(masking))
    chosen = masking[masking["share"] == MASKED_SHARE]
    yield from _head("10 % masked, chosen by: % fallen / % others changed", cells)
    for order in chosen["order"].unique():
        values = []
        for data, network in cells:
            rows = chosen[(chosen["data"] == data) & (chosen["network"] == network) & (chosen["order"] == order)]
            fallen, others = (
                (rows[f"{column}_mean"] * rows["samples"]).sum() / rows["samples"].sum()
                for column in ("fallen", "others_changed")
            )
            values.append(f"{100 * fallen:.0f} / {100 * others:.0f}")
        yield f"| {order} | {' | '.join(values)} |"


def _head(title: str, cells: list[tuple[str, str]]) -> Iterator[str]:
    yield f"| {title} | {' | '.join(f'{DATA_SETS[data]}, {NETWORKS[network]}' for data, network in cells)} |"
    yield "|---" * (1 + len(cells)) + "|"


def _in_order(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    there = set(zip(table["data"], table["network"], strict=True))
    yield from ((data, network) for data in DATA_SETS for network in NETWORKS if (data, network) in there)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gather", "write"])
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "gather":
        gather(arguments.folders)
    else:
        PAGE.write_text(written(PAGE.read_text()))
