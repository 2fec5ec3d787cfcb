"""What the trainer process does with a job: checks its words, runs its programs at low priority, follows them.

Enters: jobs from Redis (wire/job_queue.py), made by anybody who may write there.
Leaves: progress and log lines to Redis; runs in `trainer.runs_dir`; models in the registry, by way of its gate.
Imported by `services.trainer`, `services.config` and the commands. Needs no torch: the programs it starts do.
"""
