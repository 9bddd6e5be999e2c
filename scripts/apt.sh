# Sourced by the scripts beside it, which define `say`.

# apt_install PACKAGE...: with apt-get, as root or through sudo; ends the script with 2 where it cannot.
apt_install() {
  if [ ! -x "$(command -v apt-get || true)" ]; then
    say "knows only apt-get, and needs $*: install them by hand (see the head of $0)"
    exit 2
  fi
  local sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    if [ ! -x "$(command -v sudo || true)" ]; then
      say "cannot install Debian packages without root: ask for"
      say "apt-get install $*"
      exit 2
    fi
    sudo="sudo"
  fi
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}
