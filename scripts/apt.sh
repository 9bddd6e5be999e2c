# Sourced by the other scripts of this folder, which define `say`.

# apt_install PACKAGE...: installs with apt-get, as root or through sudo; exits with 2 if it cannot.
apt_install() {
  if [ ! -x "$(command -v apt-get || true)" ]; then
    say "apt-get is missing: install $* by hand (see the comment in $0)"
    exit 2
  fi
  local sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    if [ ! -x "$(command -v sudo || true)" ]; then
      say "installing Debian packages needs root: have an administrator run"
      say "apt-get install $*"
      exit 2
    fi
    sudo="sudo"
  fi
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}
