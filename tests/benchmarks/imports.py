"""Seconds to import the plugin beyond Cobaya itself, in fresh interpreters."""

import statistics
import subprocess
import sys
import time


def seconds(code):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


cobaya = seconds("import cobaya.likelihood, cobaya.theory")
plugin = seconds("import cobaya.likelihood, cobaya.theory, cobaya_cnnlens; cobaya_cnnlens.CNNLens")
print(f"cobaya          {cobaya:.2f} s")
print(f"with the plugin {plugin:.2f} s    beyond cobaya: {plugin - cobaya:.2f} s")
