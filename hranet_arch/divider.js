// Two pictures, one over the other, and a divider between them: for the pages of `basicsr demo` and `basicsr compare`.
// They have get(id), #pan (the window), #stage (the pictures), #divider, #position (a range input), and an element
// .covering, of which what is left of the divider is seen.

// The divider stays where it is in the window on the picture; scrolling moves the picture below it.
function placeDivider() {
  const x = (get("position").value / 100) * get("pan").clientWidth;
  get("divider").style.left = `${x}px`;
  const hidden = get("stage").offsetWidth - get("pan").scrollLeft - x;
  document.querySelector(".covering").style.clipPath = `inset(0 ${Math.max(0, hidden)}px 0 0)`;
}

function followPointer(down) {
  const pan = get("pan");
  const frame = pan.getBoundingClientRect();
  const isOnDivider = down.currentTarget === get("divider");
  if (down.button || (!isOnDivider && (down.clientX > frame.left + pan.clientWidth
    || down.clientY > frame.top + pan.clientHeight))) return; // a scroll bar
  const isPanning = !isOnDivider && pan.classList.contains("large");
  if (isPanning && down.pointerType !== "mouse") return; // the browser's own scrolling
  const start = [pan.scrollLeft + down.clientX, pan.scrollTop + down.clientY];
  const move = (event) => {
    if (isPanning) pan.scrollTo(start[0] - event.clientX, start[1] - event.clientY);
    else get("position").value = ((event.clientX - frame.left) / pan.clientWidth) * 100;
    placeDivider();
  };
  const target = down.currentTarget;
  target.setPointerCapture(down.pointerId);
  target.addEventListener("pointermove", move);
  for (const end of ["pointerup", "pointercancel"]) {
    target.addEventListener(end, () => target.removeEventListener("pointermove", move), { once: true });
  }
  if (!isPanning) move(down);
}
