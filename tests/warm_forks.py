"""The one warm process of a test worker, from which commands are forked.

`import diffusers` alone costs eight seconds; a fork of a process that has done so starts at once. Python keeps one such process
for all contexts, and the last list of modules given to it before it starts is the one it imports: so there is one list, here.
"""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "pytest",
        "cellbridge.cli",
        "cellbridge.assembly",
        "cellbridge.fitting",
        "cellbridge.stages.prepare",
        "cellbridge.stages.pretrain",
        "cellbridge.stages.finetune",
        "cellbridge.stages.train_classifier",
        "cellbridge.stages.translate",
        "cellbridge.stages.evaluate",
        "cellbridge.stages.generate",
        "cellbridge.stages.synthesize",
        "cellbridge.data.extraction",
        "anndata",
        "diffusers.models.unets.unet_2d",
        "diffusers.pipelines.ddim.pipeline_ddim",
        "diffusers.schedulers.scheduling_ddim",
        "matplotlib.pyplot",
        "peft",
        "pyarrow.parquet",
        "scipy.stats",
        "sklearn.linear_model",
        "tensorboard.summary.writer.record_writer",
        "tifffile",
        "torch._dynamo",
        "torch.distributed",
    ]
)
