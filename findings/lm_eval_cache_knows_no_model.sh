#!/bin/sh
# Guess: `use_cache=PATH` of lm-eval keeps answers per model: evaluating the pruned model with the path that the dense one used
#   computes its own.
# Seen (lm_eval 0.4.13): an answer's key is made of the kind of request and its text. Whatever model comes second gets the first
#   one's answers, is not asked at all, and its table repeats the first model's scores under its own name.
# For users of Trimline: a loop over dense and pruned folders with one cache path says that pruning costs nothing. One path per model.
. "$(dirname "$0")/lib.sh"
packages lm_eval==0.4.13 datasets==5.2.0 numpy==2.4.6
python 2>/dev/null <<'EOF'
import json
from pathlib import Path

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from seen import seen

rows = [json.dumps({"question": f"Is {number} a number?", "choices": ["yes", "no"], "answer": 0}) for number in range(6)]
Path("rows.jsonl").write_text("\n".join(rows))
Path("yes.yaml").write_text(
    "task: yes_or_no\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
    "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: answer\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
)
tasks = TaskManager(include_path=".", include_defaults=False)


class Says(LM):
    """A model that finds one word likely."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word, self.asked = word, 0

    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
        self.asked += len(requests)
        return [(0.0 if request.args[1].strip() == self.word else -9.0, True) for request in requests]

    def loglikelihood_rolling(self, requests: list) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list) -> list[str]:
        raise NotImplementedError


def accuracy(model: LM, cache: str | None) -> float:
    found = lm_eval.simple_evaluate(model, tasks=["yes_or_no"], task_manager=tasks, use_cache=cache, bootstrap_iters=0)
    return found["results"]["yes_or_no"]["acc,none"]


good, bad = Says("yes"), Says("no")
seen(accuracy(bad, None) == 0, "without a cache the bad model gets nothing right")
seen(accuracy(good, "answers") == 1, "the good model, with a cache, gets all right")
bad.asked = 0
seen(accuracy(bad, "answers") == 1 and bad.asked == 0, "the bad model with that cache is not asked, and gets all right as well")
EOF
