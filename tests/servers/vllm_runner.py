"""Runs inside vLLM's environment: a JSON job on stdin, its answer as JSON in the file that the job names."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def main() -> None:
    """Greedy tokens after each prompt, and the log-probabilities of the prompt's own tokens, in fp32."""
    from vllm import LLM, SamplingParams

    job: dict[str, Any] = json.load(sys.stdin)
    llm = LLM(model=job["model"], dtype="float32", max_model_len=256, enforce_eager=True, trust_remote_code=job["trust"], max_num_seqs=4)
    wanted = SamplingParams(temperature=0, max_tokens=job["tokens"], prompt_logprobs=1, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], wanted, use_tqdm=False)  # its bar divides by no time
    answer = [
        {
            "tokens": list(output.outputs[0].token_ids),
            "logprobs": [entry[token].logprob for token, entry in zip(ids[1:], output.prompt_logprobs[1:], strict=True)],
        }
        for ids, output in zip(job["prompts"], outputs, strict=True)
    ]
    architectures = llm.llm_engine.model_config.architectures
    Path(job["answer"]).write_text(json.dumps({"architectures": architectures, "answers": answer}), encoding="utf-8")


if __name__ == "__main__":  # vLLM starts processes that import this file again
    main()
