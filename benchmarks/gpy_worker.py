"""EP by GPy, in an environment of its own: reads the names of .npz files, answers with JSON.

Started by prior_orthant.py. A file holds a kernel K, labels y (0/1) and whether to update all sites
in parallel; the answer is log Z and the seconds that inference took.
"""

import json
import sys
import time

import GPy
import numpy as np
from paramz.core.observable_array import ObsAr


def main() -> None:
    for line in sys.stdin:
        problem = np.load(line.strip())
        kernel, labels = problem["kernel"], problem["labels"].astype(float)
        link = GPy.likelihoods.link_functions.Heaviside()
        likelihood = GPy.likelihoods.Bernoulli(gp_link=link)
        inference = GPy.inference.latent_function_inference.EP(
            parallel_updates=bool(problem["parallel"])
        )
        inputs = np.arange(len(labels), dtype=float)[:, None]
        fixed = GPy.kern.Fixed(1, kernel)
        started = time.perf_counter()
        _, log_z, _ = inference.inference(fixed, inputs, likelihood, ObsAr(labels[:, None]))
        seconds = time.perf_counter() - started
        print(json.dumps({"log_z": float(log_z), "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
