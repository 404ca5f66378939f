"""The page: what is in it, and how it behaves in a real browser."""

import base64
import html
import io
import json
import math
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from ncdd.report.folder import job_folders, read_metrics, read_summary
from ncdd.report.page import FEWEST_POINTS, read_run, run_data, sweep_data, write_page

ROOT = Path(__file__).parents[2]
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
NASTY = "</script><script>document.title='hacked'</script><b>\"'&"


@pytest.fixture
def sweep(make_run, tmp_path):
    """Widths 8, 16, 128 x two seeds; one failed with markup in its settings and its message; one is under way."""
    n = 0
    for width in (128, 8, 16):
        for seed in (0, 1):
            overrides = (f"model.width={width}", f"seed={seed}", "dataset=digits")
            make_run(f"sweep/model.width={width},seed={seed}", K=5, epochs=8, seed=n, overrides=overrides)
            n += 1
    folder = tmp_path / "sweep" / "model.width=8,seed=1"
    summary = json.loads((folder / "summary.json").read_text())
    summary["final"]["test/accuracy"] = math.nan
    (folder / "summary.json").write_text(json.dumps(summary))
    failed = tmp_path / "sweep" / "model.width=a<b>#?&\"' %41,seed=0"
    failed.mkdir()
    (failed / "FAILED").write_text(f"ValueError: {NASTY}\n")
    under_way = make_run("sweep/model.width=16,seed=2", K=5, epochs=6, overrides=("model.width=16", "seed=2"))
    for name in ("DONE", "summary.json", "collapse.npz"):
        (under_way / name).unlink()
    return tmp_path / "sweep"


def embedded(page: Path) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), flags=re.S)
    return json.loads(text)


# ------------------------------------------------------------------------------ what is in it
def test_the_page_of_a_sweep_has_every_job_and_links_that_exist(sweep):
    page = write_page(sweep)
    data = embedded(page)
    assert page == sweep / "report.html"
    assert (data["axes"], data["short"]["model.width"], data["same"]) == (
        ["model.width", "seed"],
        "width",
        {"dataset": "digits"},
    )
    assert len(data["jobs"]) == 8
    for job in data["jobs"]:
        target = sweep / unquote(job["href"])
        assert target.is_file() and target.parent.name == job["name"]
        assert (target.parent / unquote(embedded(target)["up"])).resolve() == page.resolve()
    (failed,) = [job for job in data["jobs"] if job["status"] == "failed"]
    assert failed["error"] == f"ValueError: {NASTY}"
    assert not list(sweep.rglob("*.tmp"))


def test_curves_and_final_values_are_those_of_the_files(sweep):
    data = embedded(write_page(sweep))
    for job in data["jobs"]:
        folder = sweep / job["name"]
        if not (folder / "metrics.csv").exists():
            continue
        for name, (epochs, values) in ((n, s) for n, s in read_metrics(folder).items() if "/" in n):
            number, shown = job["curves"][name]
            assert data["epochs"][number] == epochs.tolist()
            np.testing.assert_allclose(shown, values, rtol=5e-4)
        if job["status"] == "done":
            expected = {name: v for name, v in read_summary(folder)["final"].items() if math.isfinite(v)}
            assert job["final"] == pytest.approx(expected, rel=1e-5)


def test_long_curves_are_thinned_and_keep_their_ends(make_run, monkeypatch):
    run = read_run(make_run(K=3, epochs=900))
    data = run_data(run)
    assert data["points"] == 300
    (number, values) = data["jobs"][0]["curves"]["train/loss"]
    epochs = data["epochs"][number]
    assert (len(epochs), len(values), epochs[0], epochs[-1]) == (300, 300, 0, 900)
    monkeypatch.setattr("ncdd.report.page.POINTS", 1)
    assert sweep_data(run.job.folder, [run, run])["points"] == FEWEST_POINTS


def test_a_hundred_runs_stay_below_five_megabytes(make_run, tmp_path):
    run = read_run(make_run(K=100, epochs=200))
    metrics = {f"{name}_{copy}": series for name, series in run.metrics.items() for copy in range(3)}
    many = [type(run)(run.job, metrics, run.cosines, run.about)] * 100
    assert len(json.dumps(sweep_data(tmp_path, many), separators=(",", ":"))) < 5e6


def test_what_cannot_be_read_is_told_and_hurts_no_other(sweep):
    broken = job_folders(sweep)[0]
    (broken / "metrics.csv").write_text("epoch,train/loss\n0,x\n")
    (broken / "collapse.npz").write_text("no archive")
    data = embedded(write_page(sweep))
    told = {job["name"]: job["error"] for job in data["jobs"]}
    assert told.pop(broken.name) == "metrics.csv: line 2, column 'train/loss': 'x' is not a number"
    assert sum(map(bool, told.values())) == 1
    assert sum(bool(job["gram"]) for job in data["jobs"]) == 5


def test_nothing_ends_the_script_or_is_read_as_a_mark_of_the_template(make_run, tmp_path):
    folder = make_run("{{DATA}}<b>", K=3, epochs=1, overrides=(f"a={NASTY}", "b={{JS}}"))
    page = write_page(folder)
    assert page.read_text().count("</script>") == 3
    assert embedded(page)["jobs"][0]["overrides"] == {"a": NASTY, "b": "{{JS}}"}
    assert "<title>{{DATA}}&lt;b&gt; - ncdd</title>" in page.read_text()


def test_the_page_asks_for_nothing_outside(sweep):
    text = write_page(sweep).read_text()
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)


@pytest.mark.slow
def test_the_wheel_has_the_parts_of_the_page(tmp_path):
    build = shutil.which("uv")
    if build is None:
        pytest.skip("no uv to build a wheel with")
    subprocess.run([build, "build", "--wheel", "--out-dir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"ncdd/report/page.{suffix}" for suffix in ("py", "html", "css", "js")} <= set(names)


# ------------------------------------------------------------------------------ in a browser
def browse(page: Path, script: str, *, width: int = 1280, dark: bool = False):
    """What `script`, the body of a function, returns after the page was loaded from its file."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome to open the page in (Debian: apt-get install chromium)")
    # synchronous handlers: what a click does is done when it returns
    probe = (
        "<script>{ let found; try { found = (() => {" + script + "})() } catch (error) { found = 'probe: ' + error }"
        "const out = document.createElement('pre'); out.id = 'probe'; out.textContent = JSON.stringify("
        "[document.documentElement.dataset.error ?? null, found]); document.body.append(out) }</script>"
    )
    copy = page.with_name("probed.html")
    copy.write_text(page.read_text().replace("</body>", probe + "</body>"))
    profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # the browser's last process may still write
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile.name}",
        f"--window-size={width},900", *["--force-dark-mode"] * dark, "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    with profile:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (text,) = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.S)
    error, found = json.loads(html.unescape(text))
    assert error is None
    assert not str(found).startswith("probe: "), found
    return found


LOOK = """
const all = (query) => [...document.querySelectorAll(query)];
const column = (name) => all("thead th").findIndex((cell) => cell.textContent === name);
const read = (name) => all("tr.run").map((row) => row.children[column(name)].textContent);
const press = (name) => all("th button").find((button) => button.textContent === name).click();
const choose = (label, value) => {
  const found = all("label").find((one) => one.firstChild.textContent === label && one.querySelector("select"));
  found.querySelector("select").value = value;
  found.querySelector("select").dispatchEvent(new Event("change"));
};
"""


def test_a_sweep_in_a_browser(sweep):
    page = write_page(sweep)
    found = browse(
        page,
        LOOK
        + """
        const seen = { title: document.title, lang: document.documentElement.lang };
        seen.statuses = read("status");
        seen.errors = all("td.error").map((cell) => cell.textContent);
        seen.markup = all("td b").length + all("td script").length;
        press("width"); seen.up = read("width");
        seen.order = all("th[aria-sort]").map((th) => th.getAttribute("aria-sort"));
        press("width"); seen.down = read("width"); seen.focus = document.activeElement.textContent;
        press("test/accuracy"); seen.accuracy = read("test/accuracy");
        seen.paths = all("svg path").length; seen.circles = all("svg circle").length;
        const sections = new Map(all("section").map((part) => [part.firstChild.textContent, part]));
        const curves = sections.get("Learning curves");
        all("label.check").find((label) => label.textContent === "mean of each colour").querySelector("input").click();
        seen.withMeans = curves.querySelectorAll("path").length;
        choose("a panel for each", "seed");
        seen.panels = [...curves.querySelectorAll("figcaption")].map((c) => c.textContent);
        choose("a panel for each", "(none)");
        choose("metric", "train/nc1_pinv");
        seen.ticks = [...curves.querySelectorAll("text")].map((text) => text.textContent);
        const svg = curves.querySelector("svg"), path = svg.querySelector("path");
        const [px, py] = path.getAttribute("d").slice(1).split("L").at(-1).split(",").map(Number);
        const box = svg.getBoundingClientRect(), scale = box.width / 460;
        const [clientX, clientY] = [box.left + px * scale, box.top + py * scale];
        svg.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
        seen.tip = document.getElementById("tip").hidden ? null : document.getElementById("tip").textContent;
        seen.heat = all("table.heat tbody tr").map((row) => [...row.children].map((cell) => cell.textContent));
        seen.heatSays = sections.get("Final values over two settings").querySelector("p").textContent;
        seen.grams = all("canvas").length;
        seen.pixel = [...all("canvas")[0].getContext("2d").getImageData(1, 1, 1, 1).data];
        seen.links = all("tr.run a").map((link) => link.href);
        const filter = document.getElementById("filter");
        filter.value = "seed=0 done"; filter.dispatchEvent(new Event("input"));
        seen.filtered = read("width"); seen.pathsLeft = curves.querySelectorAll("path").length;
        filter.value = "no such run"; filter.dispatchEvent(new Event("input")); seen.none = read("width").length;
        return seen;
        """,
    )
    widths = ["8", "16", "128", "16"]
    assert (found["title"], found["lang"]) == ("sweep - ncdd", "en")
    assert sorted(found["statuses"]) == ["done"] * 6 + ["failed", "unfinished"]
    assert found["errors"] == [f"ValueError: {NASTY}"] and found["markup"] == 0
    assert [w for w in found["up"] if w in widths] == ["8", "8", "16", "16", "16", "128", "128"]
    assert found["down"] == found["up"][::-1] and found["order"] == ["ascending"] and found["focus"] == "width"
    numbers = [float(text.removesuffix(" %")) for text in found["accuracy"] if text != "-"]
    assert numbers == sorted(numbers) and len(numbers) == 5
    assert found["accuracy"][5:] == ["-"] * 3  # NaN, failed and unfinished are last
    assert (found["paths"], found["circles"]) == (7, 5)  # a curve a run that has any, a point a run that ended well
    assert found["withMeans"] == 7 + 3
    assert found["panels"] == ["seed = 0", "seed = 1", "seed = 2"]
    assert {"0.1", "1", "epoch"} <= set(found["ticks"])  # a log axis
    assert found["tip"] == f"width=8, seed=0\ntrain/nc1_pinv {finals(sweep, 8, 0)['train/nc1_pinv']:.3g}, epoch 8"
    assert found["grams"] == 6 and found["pixel"] == [178, 24, 43, 255]  # cosine 1
    assert (
        sorted(found["filtered"], key=int) == ["8", "16", "128"] and found["pathsLeft"] == 3 + 3 and found["none"] == 0
    )
    mean = [
        np.mean([value for seed in (0, 1) if math.isfinite(value := finals(sweep, width, seed)["test/accuracy"])])
        for width in (8, 16, 128)
    ]
    assert len(found["heat"]) == 3
    for row, width, value in zip(found["heat"], ("8", "16", "128"), mean, strict=True):
        assert row[0] == width
        assert float(row[1].removesuffix(" %")) == pytest.approx(100 * value, abs=0.006)
    assert "the mean of 1 to 2 runs, over seed" in found["heatSays"]
    paths = {Path(unquote(link.removeprefix("file://"))) for link in found["links"]}
    assert paths == {folder / "report.html" for folder in job_folders(sweep)}


def distilled(folder: Path, kept: int, colours: dict[int, str]) -> None:
    """Pictures of a set at its iterations, and a summary of a distillation that kept the one of `kept`."""
    (folder / "figures" / "distilled").mkdir(parents=True)
    for step, colour in colours.items():
        Image.new("RGB", (900, 600), colour).save(folder / "figures" / "distilled" / f"step_{step:07}.png")
    summary = json.loads((folder / "summary.json").read_text()) | {"kept": kept}
    summary["final"] |= {"train/outer_loss": 1.0, "test/accuracy_augmented": 0.9}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_sets_are_side_by_side(sweep):
    one, other, damaged = job_folders(sweep)[:3]
    distilled(one, 10, {0: "red", 10: "blue", 20: "red"})
    distilled(other, 0, {0: "lime"})
    distilled(damaged, 0, {0: "red"})
    picture = damaged / "figures" / "distilled" / "step_0000000.png"
    picture.write_bytes(picture.read_bytes().replace(b"IDAT", b"I\0AT"))
    page = write_page(sweep)
    data = embedded(page)
    shown = {job["name"]: job["images"] for job in data["jobs"] if job["images"]}
    assert list(shown) == [one.name, other.name]
    for name, colour in ((one.name, (0, 0, 255)), (other.name, (0, 255, 0))):
        picture = Image.open(io.BytesIO(base64.b64decode(shown[name].partition(",")[2])))
        assert picture.size == (600, 400)
        assert picture.getpixel((300, 200)) == pytest.approx(colour, abs=12)  # of a lossy format
    assert "test/accuracy_augmented" in data["panels"]
    script = """
        const seen = { sets: all("img").map((image) => image.alt) };
        const sources = all("section").find((part) => part.textContent.startsWith("Synthetic images"));
        seen.links = [...sources.querySelectorAll("a")].map((link) => link.textContent);
        const named = (text) => all("label").find((label) => label.firstChild.textContent === text);
        seen.axes = ["x", "y"].map((text) => named(text).querySelector("select").value);
        const filter = document.getElementById("filter");
        filter.value = "seed=1"; filter.dispatchEvent(new Event("input"));
        seen.left = all("img").length;
        return seen;
    """
    found = browse(page, LOOK + script)
    labels = [job["label"] for job in data["jobs"] if job["images"]]
    assert found["sets"] == [f"synthetic images of {label}" for label in labels]
    assert found["links"] == labels
    assert found["axes"] == ["train/nc1_pinv", "test/accuracy"]  # both are known of all runs
    assert found["left"] == sum("seed=1" in label for label in labels)


def finals(sweep: Path, width: int, seed: int) -> dict[str, float]:
    return read_summary(sweep / f"model.width={width},seed={seed}")["final"]


FITS = "return [document.documentElement.scrollWidth <= innerWidth, getComputedStyle(document.body).backgroundColor];"


def test_pages_fit_a_phone_and_follow_the_dark(sweep):
    assert browse(write_page(sweep), FITS, width=500) == [True, "rgb(255, 255, 255)"]
    assert browse(job_folders(sweep)[0] / "report.html", FITS, width=500, dark=True) == [True, "rgb(20, 23, 26)"]


def test_a_run_in_a_browser(make_run):
    folder = make_run(K=12, epochs=20)
    (folder / "figures").mkdir()
    (folder / "figures" / "features.png").write_bytes(b"\x89PNG")
    script = """
        const seen = {};
        seen.rows = all("section:first-of-type > .scroll tr").map((row) => [...row.children].map((c) => c.textContent));
        seen.captions = all(".charts figcaption").map((caption) => caption.textContent);
        seen.paths = all("svg path").length; seen.grams = all("canvas").length;
        seen.config = all("pre")[0].textContent; seen.image = all("img")[0].src.slice(0, 22);
        choose("another metric", "ncc_accuracy");
        seen.other = all(".charts.single figcaption").map((caption) => caption.textContent);
        return seen;
    """
    found = browse(write_page(folder), LOOK + script)
    summary = read_summary(folder)
    (head, accuracy, *_) = found["rows"]
    assert head == ["", "train: initial", "final", "val: initial", "final", "test: initial", "final"]
    expected = [
        100 * summary[part][f"{split}/accuracy"] for split in ("train", "val", "test") for part in ("initial", "final")
    ]
    assert [float(cell.removesuffix(" %")) for cell in accuracy[1:]] == pytest.approx(expected, abs=0.006)
    main = ["accuracy", "loss", "nc1_pinv", "nc2_etf_M", "nc2_etf_W", "nc3_dual_etf", "nc4_agree_bias"]
    assert found["captions"][:7] == main
    assert found["paths"] == 3 + 3 + 5 * 2 + 2
    assert found["grams"] == 4
    assert (found["config"], found["image"], found["other"]) == (
        "seed: 0\n",
        "data:image/png;base64,",
        ["ncc_accuracy"],
    )


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    assert browse(write_page(tmp_path / "run"), "return document.querySelector('h1').textContent;") == "Run run"
