// Exchanges the code in the address's fragment, which is sent to nobody, for a cookie.

const code = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
const message = document.getElementById("message");

async function enter() {
  if (!code) {
    message.textContent = "This address lacks its code. Ask for a new link: edge-agent dashboard";
    return;
  }
  const response = await fetch("/dashboard/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ code }),
  });
  if (response.ok) {
    location.replace("/");
    return;
  }
  message.textContent =
    "This link is not valid any more: it works once, for five minutes. Ask for a new one: edge-agent dashboard";
}

enter().catch(() => {
  message.textContent = "The daemon does not answer. Is it still running?";
});
