"""The frame of a page of HTML that opens without a server, and fetches nothing."""

from __future__ import annotations

from html import escape


def html_page(title: str, style: str, body: str) -> str:
    """Returns a whole page.

    Args:
        title: What the browser calls it; escaped here.
        style: Style sheet.
        body: HTML.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
