"""The report of a run: pictures, the HTML page, and lines on the terminal."""
