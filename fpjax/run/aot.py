"""What the compiled programs of a config say about an accelerator that is not here: bounds, no measurements."""

import jax

from ..core.store import write_json
from ..core.terminal import say, show
from ..engine.chains import MAX_SLOTS, block_shapes
from .job import Job
from .targets import Compiled, Target, compile_for
from .timing import Program, duration

FULL = 0.9  # of a device's memory that programs may take


def engine_program(job: Job, device: object, slots: int) -> Program:
    """A block of chains; its bound is that of one reverse step of all slots."""
    engine = job.engine_on([device], slots=slots)
    return Program(engine.advance, block_shapes(engine, job.param_shapes), slots, slots, unit="steps")


def programs(job: Job, device: object) -> dict[str, Program]:
    """All programs of a config with whole batches, and the engine's block with all slots and with a quarter of them."""
    slots = job.config.engine.slots
    made = {f"engine, {n} slots": engine_program(job, device, n) for n in sorted({max(slots // 4, 1), slots})}
    brought = {name: program(job, True) for stage in job.stages for name, program in stage.programs.items()}
    return made | {name: program for name, program in brought.items() if program}


def largest_slots(compiled: dict[int, Compiled], memory: int) -> int:
    """As many slots as fit, by the straight line through two programs of the engine; a multiple of 32, or below."""
    few, many = min(compiled), max(compiled)
    if few == many:
        return many
    each = (compiled[many].bytes - compiled[few].bytes) / (many - few)
    most = min(int((FULL * memory - compiled[few].bytes) / max(each, 1) + few), MAX_SLOTS)
    return most // 32 * 32 if most >= 32 else max(most, 0)


def show_target(job: Job, name: str, target: Target) -> None:
    """Compiles everything for the target, prints the table, and writes `benchmark-NAME.json`."""
    device = target.devices()[0]
    show(f"{target.name}, compiled by JAX {jax.__version__} without one: every time is a bound, not measured")
    show(f"{job.config.model.dtype} network, kernels {job.config.model.kernels}; likelihood float32")
    columns = f"{'bound ms':>9} {'GB':>8} {'kernels':>8} {'temp GiB':>9} {'host':>5}"
    show(f"{'program':24} {'batch':>6} {columns}  most bytes")
    found: dict[str, Compiled] = {}
    bounds: dict[str, float] = {}
    made = programs(job, device)
    for program_name, program in made.items():
        try:
            one = found[program_name] = compile_for(device, program)
        except jax.errors.JaxRuntimeError as error:
            said = " ".join(str(error).split())[:100]
            show(f"{program_name:24} {program.batch:6} the compiler does not take it: {said}")
            continue
        bounds[program_name] = target.bound(one.cost)
        most = ", ".join(f"{part} {share:.0%}" for part, share in one.cost.parts()[:3])
        show(
            f"{program_name:24} {program.batch:6} {1e3 * bounds[program_name]:9.2f} {one.cost.bytes / 1e9:8.2f} "
            f"{len(one.cost.kernels):8} {one.temp_bytes / 2**30:9.2f} {one.cost.host:5}  {most}"
        )
    engines = {made[key].batch: one for key, one in found.items() if key.startswith("engine")}
    asked = job.config.engine.slots
    slots = largest_slots(engines, target.memory) if engines else 0
    show(f"largest engine.slots in {FULL:.0%} of {target.memory / 2**30:.0f} GiB: about {slots}")
    if slots < asked:
        say(f"engine.slots: {asked} do not fit into {target.name}; at most about {slots}")
    predicted = {}
    for stage in job.stages:
        rows = stage.cost(job).rows
        if rows and set(rows) <= set(found):
            predicted[stage.name] = sum(count / made[key].batch * bounds[key] for key, count in rows.items())
            show(f"{stage.name:24} at least {duration(predicted[stage.name])} on one device (bound)")
    write_json(
        job.workdir / f"benchmark-{name}.json",
        {
            "target": target.name,
            "jax": jax.__version__,
            "bound_not_measured": True,
            "dtype": job.config.model.dtype,
            "kernels": job.config.model.kernels,
            "programs": [
                {
                    "name": key,
                    "batch": made[key].batch,
                    "bound_s": bounds[key],
                    "bytes": one.cost.bytes,
                    "flops": one.cost.flops,
                    "num_kernels": len(one.cost.kernels),
                    "temp_bytes": one.temp_bytes,
                    "memory_bytes": one.bytes,
                    "host_transfers": one.cost.host,
                    "float32": dict(one.cost.float32),
                }
                for key, one in found.items()
            ],
            "largest_slots": slots,
            "bound_s": predicted,
        },
    )
