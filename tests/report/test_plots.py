"""DVC's own plots, drawn by headless Chromium from the page that `dvc plots show` writes: the marks, not the JSON."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

pytestmark = pytest.mark.minutes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TABLES = {
    "loss.csv": "step,rows,loss\n1,training,7.5\n5,training,6.5\n10,training,6\n0,held out,7.25\n10,held out,5.75\n",
    "training.csv": "step,learning_rate,grad_norm\n1,0.001,2\n5,0.004,1\n10,0.002,1.5\n",
    "accuracy.csv": "benchmark,model,acc,stderr,n\nC-Eval,base,0.5,0.05,96\nC-Eval,tuned,0.75,0.04,96\n",
    "categories.csv": "category,model,acc,stderr,n\nmmlu_stem,base,0.5,0.1,20\nmmlu_stem,tuned,0.4,0.1,20\n",
    "subjects.csv": "subject,model,acc,stderr,n\nmmlu_law,base,0.5,0.1,8\nmmlu_law,tuned,0.25,0.1,8\n",
    "topics.csv": 'topic,rows\n"food",40\n"animals",60\n"zoology",50\n',
    "lengths.csv": "source,tokens,rows\nmine,32,4\nmine,64,2\n",
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The SVG of each plot by its title, as Chromium draws the page of `dvc plots show`."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    import vl_convert

    root = Path(__file__).parents[2]
    folder = tmp_path_factory.mktemp("plots")
    plots = YAML(typ="safe").load((root / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump({"plots": plots}, file)
    (folder / "metrics").mkdir()
    for name, text in TABLES.items():
        (folder / "metrics" / name).write_text(text)
    dvc = str(Path(sys.executable).with_name("dvc"))
    for command in (["git", "init", "-q"], [dvc, "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    shutil.copytree(root / ".dvc/plots", folder / ".dvc/plots", dirs_exist_ok=True)
    subprocess.run([dvc, "plots", "show", "-q"], cwd=folder, check=True)
    page = (folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    # The page takes Vega from a CDN and draws on a canvas; the test brings Vega along, and lets it draw SVG.
    vega = vl_convert.javascript_bundle(
        "window.vegaEmbed = (at, spec) => vegaEmbed(at, spec, {renderer: 'svg', actions: false})"
    )
    page = re.sub(r'<script[^>]*src="https://cdn[^>]*></script>', "", page)
    page = page.replace(
        "<body>", "<script type='module'>" + vega.replace("</script", "<\\/script") + "</script><body>", 1
    )
    page = re.sub(r'<script type\s*=\s*"text/javascript">', "<script type='module'>", page)
    (folder / "page.html").write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'browser'}"]
    done = subprocess.run(
        [CHROMIUM, *options, "--virtual-time-budget=20000", "--dump-dom", (folder / "page.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
    )
    pictures = re.findall(r"<svg.*?</svg>", done.stdout, re.S)
    titles = [next(iter(plot)) for plot in plots]
    found = {title: svg for title in titles for svg in pictures if f">{title}</text>" in svg}
    assert found.keys() == set(titles), done.stdout[-2000:]
    return found


def labels(svg: str, role: str) -> list[str]:
    """What each drawn mark of a kind says of itself."""
    found = re.findall(rf'<path aria-label="([^"]*)"[^>]*aria-roledescription="{role}"', svg)
    return [html.unescape(text) for text in found]


def test_each_loss_is_drawn_through_its_own_points(drawn: dict[str, str]) -> None:
    svg = drawn["Loss"]
    points = [text for text in labels(svg, "point") if "rows: held out" in text]
    assert len(points) == 2 and any("7.25" in text for text in points)
    assert len(labels(svg, "point")) == 5  # no cell without a value is drawn as 0
    assert "#8a94a0" in svg and "#c4522d" in svg
    assert "optimiser step" in svg and "nats per token" in svg


def test_the_other_curves_have_optimiser_steps_on_x(drawn: dict[str, str]) -> None:
    for title in ("Learning rate", "Gradient norm"):
        assert "optimiser step" in drawn[title] and ">10</text>" in drawn[title]


@pytest.mark.parametrize(("title", "low"), [("Accuracy", "0.402"), ("Categories", "0.304"), ("Subjects", "0.304")])
def test_models_have_two_colours_error_bars_and_a_chance_line(drawn: dict[str, str], title: str, low: str) -> None:
    svg = drawn[title]
    assert len(labels(svg, "point")) == 2
    bars = re.findall(r'<line aria-label="([^"]*)"[^>]*aria-roledescription="rule mark"[^>]*stroke="([^"]*)"', svg)
    assert {colour for text, colour in bars if "high" in text} == {"#8a94a0", "#c4522d"}
    assert any(low in text for text, _ in bars)
    assert re.search(r'<line[^>]*stroke="#59636e"[^>]*stroke-dasharray="4,3"', svg)
    assert ">base</text>" in svg and ">tuned</text>" in svg


def test_topics_stand_by_count(drawn: dict[str, str]) -> None:
    svg = drawn["Topics"]
    height = {
        name: float(re.search(rf"translate\(-?[\d.]+,([\d.]+)\)[^>]*>{name}</text>", svg)[1])
        for name in ("food", "animals", "zoology")
    }
    assert sorted(height, key=height.get) == ["animals", "zoology", "food"]
    assert len(labels(svg, "bar")) == 3 and "conversations" in svg
