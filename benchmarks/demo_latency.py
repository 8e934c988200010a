"""
Measure, in Chromium, the time until the demo's page is usable and the time from a click to the first words of a critique.

python benchmarks/demo_latency.py --model runs/quickstart/cloud --classic_model runs/quickstart/classic --repetitions 3

Requires Debian's chromium and the Python packages gradio and playwright. The first start may include reading files from disk;
afterwards, the files are in the operating system's page cache.
"""

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from recording import save


APP = Path(__file__).parents[1] / "spaces" / "demo" / "app.py"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
PROMPT = "The ball starts under cup D. Swap cups 1: A and B. 2: D and B. Where is the ball now?"
RESPONSE = "The answer is B."
CLICKS = 5
# Look for the element inside the page at each frame, because polling from outside would add its own latency
FIRST_WORDS = """
() => new Promise((resolve, reject) => {
    const critique = () => document.querySelector("#score-critique .critique");
    const [start, old] = [performance.now(), critique()];
    document.querySelector("#score-run").click();
    const look = () => {
        const text = critique() !== old && critique()?.textContent;
        const seconds = (performance.now() - start) / 1000;
        if (text) resolve(seconds);
        else if (seconds > 30) reject(new Error("No critique after 30 s."));
        else requestAnimationFrame(look);
    };
    look();
})
"""


def measure(browser, arguments: list[str]) -> dict:
    """
    Start the demo once and click several times. Returns the seconds from the start until the page is usable and until the model is loaded,
    and those from each click until words appear.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    page = browser.new_page()
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, str(APP), *arguments, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        _open(page, port)
        # The page is usable once its boxes accept text
        page.get_by_label("Prompt").first.fill(PROMPT)
        page.get_by_label("Response", exact=True).first.fill(RESPONSE)
        page.locator("#score-run").click(trial=True)
        interactive = time.monotonic() - start
        page.locator("#about", has_not_text="being loaded").wait_for(timeout=120_000)
        loaded = time.monotonic() - start
        clicks = []
        for _ in range(CLICKS):
            clicks.append(page.evaluate(FIRST_WORDS))
            page.locator("#score-status", has_text=re.compile("Done")).wait_for()
            page.wait_for_timeout(1000)  # until the page learns that the run has ended, it ignores clicks
        return {"page_interactive": interactive, "model_loaded": loaded, "first_words": clicks}
    finally:
        page.close()
        process.terminate()
        process.wait()


def _open(page: Page, port: int):
    """Open the page as soon as the server listens."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    page.goto(f"http://127.0.0.1:{port}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/cloud")
    parser.add_argument("--classic_model", default="runs/quickstart/classic")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", help="JSON file for the measurements.")
    args = parser.parse_args()
    arguments = ["--model", args.model, "--classic_model", args.classic_model]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        starts = [measure(browser, arguments) for _ in range(args.repetitions)]
        browser.close()
    clicks = [seconds for start in starts for seconds in start["first_words"]]
    figures = {
        "page_interactive_s": [round(start["page_interactive"], 2) for start in starts],
        "model_loaded_s": [round(start["model_loaded"], 2) for start in starts],
        "first_words_median_s": round(statistics.median(clicks), 3),
        "first_words_max_s": round(max(clicks), 3),
    }
    print(json.dumps(figures, indent=2))
    if args.output:
        save(args.output, figures)


if __name__ == "__main__":
    main()
