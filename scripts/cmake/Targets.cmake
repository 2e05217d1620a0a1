# What CUDA code is compiled and linked with; linking it defines ALLOSAUR_HAVE_CUDA.
add_library(cuda INTERFACE)
if(ALLOSAUR_HAVE_CUDA)
  target_compile_definitions(cuda INTERFACE ALLOSAUR_HAVE_CUDA)
  target_include_directories(cuda SYSTEM INTERFACE "${NCCL_INCLUDE_DIR}")
  # libtorch_cuda registers its kernels when it is loaded; nothing refers to it by name.
  target_link_libraries(cuda INTERFACE "-Wl,--no-as-needed,-ltorch_cuda,-lc10_cuda,--as-needed" "${NCCL_LIBRARY}" CUDA::cudart)
endif()

function(allosaur_sources result folder)
  file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.cpp" "${folder}/*.cu")
  if(NOT ALLOSAUR_HAVE_CUDA)
    list(FILTER sources EXCLUDE REGEX "(\\.cu|/nccl_[^/]*)$")
  endif()
  set(${result} "${sources}" PARENT_SCOPE)
endfunction()

# allosaur_module(NAME DEPENDS ...): lib/NAME/*.cpp as one static library.
# NAME is also the namespace and the folder; headers are included as "NAME/header.hpp". Files *.cu and nccl_*.cpp take part in
# CUDA builds only.
function(allosaur_module name)
  cmake_parse_arguments(arg "" "" "DEPENDS" ${ARGN})
  allosaur_sources(sources "${PROJECT_SOURCE_DIR}/lib/${name}")
  if(NOT sources)
    add_library(allosaur_${name} INTERFACE)
    target_link_libraries(allosaur_${name} INTERFACE ${arg_DEPENDS})
    return()
  endif()
  add_library(allosaur_${name} STATIC ${sources})
  target_include_directories(allosaur_${name} PUBLIC "${PROJECT_SOURCE_DIR}/lib")
  target_link_libraries(allosaur_${name} PUBLIC ${arg_DEPENDS})
endfunction()

# allosaur_test(NAME RANKS n... [DEPENDS ...] [LABELS ...] [TIMEOUT s]): tests/NAME/*.cpp as one doctest executable, run
# under mpirun once per rank count (NAME.np1, NAME.np2, ...).
function(allosaur_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "RANKS;DEPENDS;LABELS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  allosaur_sources(sources "${PROJECT_SOURCE_DIR}/tests/${name}")
  if(NOT sources)
    return()
  endif()
  add_executable(test_${name} ${sources})
  target_include_directories(test_${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(test_${name} PRIVATE allosaur_testing ${arg_DEPENDS})
  foreach(ranks IN LISTS arg_RANKS)
    add_test(NAME ${name}.np${ranks} COMMAND ${ALLOSAUR_MPIRUN} -n ${ranks} $<TARGET_FILE:test_${name}>)
    set_tests_properties(${name}.np${ranks} PROPERTIES TIMEOUT ${arg_TIMEOUT} PROCESSORS ${ranks}
                         LABELS "mpi;${arg_LABELS}" ENVIRONMENT "${ALLOSAUR_TEST_ENVIRONMENT}")
  endforeach()
endfunction()
