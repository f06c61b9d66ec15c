"""`python -m tests.integration.measured CONFIG`: a run whose metrics are looked at from outside.

On a Ray of its own, whose counters begin at zero. What an undisturbed run on a CPU does not record
is recorded by itself. It prints the port of the metrics when all is recorded, and ends on SIGUSR1.
"""

import signal
import sys
import time
from typing import Any

import ray

from pipeline.cluster.session import ray_session
from pipeline.compress import compress
from pipeline.metrics import count_nightly, measured, show_perplexity
from pipeline.progress import Progress
from schemas.metrics import Metric
from schemas.request.config import RunConfig
from tests.reports import evaluation
from workers.actors.metrics import count, show


def main() -> None:
    """Compress, record, and wait."""
    ended: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: ended.append(number))
    config = RunConfig.model_validate_json(sys.argv[1])
    with ray_session(config.cluster, 1):
        compress(config)
        show_perplexity(evaluation(20.5, 25.5), 0.30)
        count_nightly("succeeded")
        count_nightly("rejected")
        count(Metric.RETRIES, kind="item")
        count(Metric.LOST_WORKERS, 2)
        count(Metric.QUARANTINED, 3)
        count(Metric.FALLBACKS, 4, kind="run")
        show(Metric.GPU_ALLOCATED, 5)
        show(Metric.GPU_MEMORY, 6)
        progress = Progress()
        name: Any = "under way"
        with measured(progress), progress.stage(name, 2, "items") as stage:
            stage.advance()
            nodes: Any = ray.nodes
            print(nodes()[0]["MetricsExportPort"], flush=True)
            while not ended:
                time.sleep(0.05)


if __name__ == "__main__":
    main()
