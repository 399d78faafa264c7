"""What is chosen for Horovod and MPI on hosts of either kind."""

from hvdyolo.config import DistributedConfig
from hvdyolo.distributed.launch import choose_environment

DEFAULTS = DistributedConfig()


def test_cpus_have_a_long_cycle_and_yield() -> None:
    assert choose_environment(DEFAULTS, gpus=False, given={}) == {
        "HOROVOD_CYCLE_TIME": "20",
        "HOROVOD_FUSION_THRESHOLD": "0",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }


def test_cpus_look_for_work_often_where_each_step_waits_for_many_sums() -> None:
    chosen = choose_environment(DEFAULTS, gpus=False, given={}, many_small_sums=True)
    assert chosen["HOROVOD_CYCLE_TIME"] == "1"
    named = choose_environment(DistributedConfig(cycle_time=7), gpus=False, given={}, many_small_sums=True)
    assert named["HOROVOD_CYCLE_TIME"] == "7"


def test_gpus_have_a_short_cycle_and_do_not_yield() -> None:
    assert choose_environment(DEFAULTS, gpus=True, given={}) == {
        "HOROVOD_CYCLE_TIME": "1",
        "HOROVOD_FUSION_THRESHOLD": "0",
        "OMPI_MCA_mpi_yield_when_idle": "0",
    }


def test_the_users_own_variables_stay_and_are_told() -> None:
    given = {"HOROVOD_CYCLE_TIME": "7", "HOROVOD_FUSION_THRESHOLD": "1", "HOME": "/"}
    for gpus in (False, True):
        chosen = choose_environment(DEFAULTS, gpus=gpus, given=given)
        assert (chosen["HOROVOD_CYCLE_TIME"], chosen["HOROVOD_FUSION_THRESHOLD"]) == ("7", "1")
        assert chosen.keys() == {
            "HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD", "OMPI_MCA_mpi_yield_when_idle",
        }  # fmt: skip


def test_settings_come_before_variables() -> None:
    settings = DistributedConfig(cycle_time=2.5)
    chosen = choose_environment(settings, gpus=False, given={"HOROVOD_CYCLE_TIME": "7"})
    assert chosen["HOROVOD_CYCLE_TIME"] == "2.5"
