"""How long a click on the page takes: from an example to its first map, as a browser sees it.

    learnprop web --port 7860 --threads 1 &
    pip install playwright && python examples/benchmarks/page_cost.py http://127.0.0.1:7860 --runs 5

Needs Debian's chromium. Prints, for each example and each run, seconds from the click to the map on the screen.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from playwright.sync_api import sync_playwright

CHANGED = "name => document.querySelector('#lp-maps figcaption strong')?.textContent === name"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    seconds: list[float] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        page.goto(given.address)
        page.wait_for_selector("#lp-maps canvas")
        print(f"page opened, first map: {time.perf_counter() - start:.2f} s")
        for _ in range(given.runs):
            for name in ("coffee", "motorcycle", "chelsea"):
                start = time.perf_counter()
                page.locator(f"#lp-examples button[title={name}]").click()
                page.wait_for_function(CHANGED, arg=name)
                seconds.append(time.perf_counter() - start)
                print(f"{name}: {seconds[-1]:.2f} s")
                page.wait_for_timeout(1500)
        browser.close()
    print(f"click to map: median {median(seconds):.2f} s, longest {max(seconds):.2f} s, {len(seconds)} clicks")


if __name__ == "__main__":
    main()
